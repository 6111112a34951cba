"""A client of the cloning server.

    async with CloningClient("127.0.0.1:50052") as cloning:
        started = await cloning.start(request)
        async for change in cloning.watch(started.clone_id):
            print(change.status, change.progress)

Takes and gives the messages of `aivo.cloning.v1`; what a call fails with is an `AivoError`.
"""

from collections.abc import AsyncGenerator

from aivo.cloning.v1.cloning_service_pb2 import (
    ActivateStudentModelRequest,
    ActivateStudentModelResponse,
    CancelCloneRequest,
    CancelCloneResponse,
    DeleteStudentRequest,
    DeleteStudentResponse,
    GetCloneRequest,
    GetCloneResponse,
    GetHealthRequest,
    GetHealthResponse,
    ListClonesRequest,
    ListClonesResponse,
    ListStudentModelsRequest,
    ListStudentModelsResponse,
    PinStudentModelRequest,
    PinStudentModelResponse,
    StartCloneRequest,
    StartCloneResponse,
    WatchCloneRequest,
    WatchCloneResponse,
)
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub

from client.calls import Client, typed_errors


class CloningClient(Client):
    """Makes and lists students' models. Fails as every `Client` does."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._stub = CloningServiceStub(self._channel)

    async def start(self, request: StartCloneRequest) -> StartCloneResponse:
        """Starts a clone; safe to repeat if the request has a `request_id`."""
        with typed_errors():
            return await self._stub.StartClone(request)

    async def fetch(self, clone_id: str) -> GetCloneResponse:
        """Returns the clone as it is now."""
        with typed_errors():
            return await self._stub.GetClone(GetCloneRequest(clone_id=clone_id))

    async def watch(
        self, clone_id: str, *, after_sequence: int | None = None
    ) -> AsyncGenerator[WatchCloneResponse, None]:
        """Yields the current state (or what came after a sequence), then each change until the last; no heartbeats."""
        call = self._stub.WatchClone(WatchCloneRequest(clone_id=clone_id, after_sequence=after_sequence))
        try:
            with typed_errors():
                async for change in call:
                    if not change.heartbeat:
                        yield change
        finally:
            call.cancel()

    async def cancel(self, clone_id: str) -> CancelCloneResponse:
        """Cancels a clone that waits or runs; safe to repeat."""
        with typed_errors():
            return await self._stub.CancelClone(CancelCloneRequest(clone_id=clone_id))

    async def list_clones(self, request: ListClonesRequest) -> ListClonesResponse:
        """Returns a page of clones, newest first."""
        with typed_errors():
            return await self._stub.ListClones(request)

    async def list_models(self, student_id: str) -> ListStudentModelsResponse:
        """Returns the versions of a student's model, newest first."""
        with typed_errors():
            return await self._stub.ListStudentModels(ListStudentModelsRequest(student_id=student_id))

    async def activate(self, student_id: str, version: int) -> ActivateStudentModelResponse:
        """Makes a version the one that answers."""
        request = ActivateStudentModelRequest(student_id=student_id, version=version)
        with typed_errors():
            return await self._stub.ActivateStudentModel(request)

    async def pin(self, student_id: str, version: int, *, pinned: bool = True) -> PinStudentModelResponse:
        """Pins a version, so that it stays, or unpins it."""
        request = PinStudentModelRequest(student_id=student_id, version=version, pinned=pinned)
        with typed_errors():
            return await self._stub.PinStudentModel(request)

    async def delete_student(self, student_id: str) -> DeleteStudentResponse:
        """Removes everything of a student; safe to repeat."""
        with typed_errors():
            return await self._stub.DeleteStudent(DeleteStudentRequest(student_id=student_id))

    async def health(self) -> GetHealthResponse:
        """Returns whether the server can clone and, if not, why."""
        with typed_errors():
            return await self._stub.GetHealth(GetHealthRequest())
