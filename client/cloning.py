"""A client of the cloning server.

    async with CloningClient("127.0.0.1:50052") as cloning:
        started = await cloning.start(request)
        async for change in cloning.watch(started.clone_id):
            print(change.status, change.progress)

Takes and returns the messages of `aivo.cloning.v1`; failed calls raise an `AivoError`.
"""

from collections.abc import AsyncGenerator, Iterable

from aivo.cloning.v1.cloning_service_pb2 import (
    CancelCloneRequest,
    CancelCloneResponse,
    GetCloneRequest,
    GetCloneResponse,
    GetHealthRequest,
    GetHealthResponse,
    ListClonesRequest,
    ListClonesResponse,
    StartCloneRequest,
    StartCloneResponse,
    WatchCloneRequest,
    WatchCloneResponse,
    WatchClonesRequest,
    WatchClonesResponse,
)
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub
from aivo.cloning.v1.student_model_service_pb2 import (
    ActivateStudentModelRequest,
    ActivateStudentModelResponse,
    ListOutdatedStudentsRequest,
    ListOutdatedStudentsResponse,
    ListStudentModelsRequest,
    ListStudentModelsResponse,
    PinStudentModelRequest,
    PinStudentModelResponse,
    UnpinStudentModelRequest,
    UnpinStudentModelResponse,
)
from aivo.cloning.v1.student_model_service_pb2_grpc import StudentModelServiceStub
from aivo.cloning.v1.student_service_pb2 import (
    DeleteStudentRequest,
    DeleteStudentResponse,
    ExportStudentRequest,
    ExportStudentResponse,
)
from aivo.cloning.v1.student_service_pb2_grpc import StudentServiceStub

from client.calls import Client, typed_errors


class CloningClient(Client):
    """Creates, lists and deletes student models. Raises what every `Client` raises."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._clones = CloningServiceStub(self._channel)
        self._models = StudentModelServiceStub(self._channel)
        self._students = StudentServiceStub(self._channel)

    async def start(self, request: StartCloneRequest) -> StartCloneResponse:
        """Starts a clone; safe to repeat if the request has a `request_id`."""
        with typed_errors():
            return await self._clones.StartClone(request)

    async def fetch(self, clone_id: str) -> GetCloneResponse:
        """Returns the clone as it is now."""
        with typed_errors():
            return await self._clones.GetClone(GetCloneRequest(clone_id=clone_id))

    async def watch(
        self, clone_id: str, *, after_sequence: int | None = None
    ) -> AsyncGenerator[WatchCloneResponse, None]:
        """Yields the current state (or what came after a sequence), then each change until the last; no heartbeats."""
        call = self._clones.WatchClone(WatchCloneRequest(clone_id=clone_id, after_sequence=after_sequence))
        try:
            with typed_errors():
                async for change in call:
                    if not change.heartbeat:
                        yield change
        finally:
            call.cancel()

    async def watch_many(
        self, *, clone_ids: Iterable[str] = (), student_ids: Iterable[str] = (), after_sequence: int | None = None
    ) -> AsyncGenerator[WatchClonesResponse, None]:
        """Yields the current state of each clone (or what came after a sequence), then each change; no heartbeats.

        Follows the named clones, and of each student those that have not ended, else the latest.
        """
        request = WatchClonesRequest(clone_ids=clone_ids, student_ids=student_ids, after_sequence=after_sequence)
        call = self._clones.WatchClones(request)
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
            return await self._clones.CancelClone(CancelCloneRequest(clone_id=clone_id))

    async def list_clones(self, request: ListClonesRequest) -> ListClonesResponse:
        """Returns a page of clones, newest first."""
        with typed_errors():
            return await self._clones.ListClones(request)

    async def list_models(self, request: ListStudentModelsRequest) -> ListStudentModelsResponse:
        """Returns a page of the versions of a student's model, newest first."""
        with typed_errors():
            return await self._models.ListStudentModels(request)

    async def list_outdated(self) -> ListOutdatedStudentsResponse:
        """Returns all students whose active model was made on another Main Brain; asks for page after page."""
        students = ListOutdatedStudentsResponse()
        request = ListOutdatedStudentsRequest()
        with typed_errors():
            while True:
                page = await self._models.ListOutdatedStudents(request)
                students.MergeFrom(page)
                if not page.next_page_token:
                    students.next_page_token = ""
                    return students
                request.page_token = page.next_page_token

    async def activate(self, student_id: str, version: int) -> ActivateStudentModelResponse:
        """Makes a version the active one."""
        request = ActivateStudentModelRequest(student_id=student_id, version=version)
        with typed_errors():
            return await self._models.ActivateStudentModel(request)

    async def pin(self, student_id: str, version: int) -> PinStudentModelResponse:
        """Pins a version, so that it stays however many come after it."""
        with typed_errors():
            return await self._models.PinStudentModel(PinStudentModelRequest(student_id=student_id, version=version))

    async def unpin(self, student_id: str, version: int) -> UnpinStudentModelResponse:
        """Unpins a version, so that it is removed once enough come after it."""
        request = UnpinStudentModelRequest(student_id=student_id, version=version)
        with typed_errors():
            return await self._models.UnpinStudentModel(request)

    async def delete_student(self, student_id: str) -> DeleteStudentResponse:
        """Removes everything of a student; safe to repeat."""
        with typed_errors():
            return await self._students.DeleteStudent(DeleteStudentRequest(student_id=student_id))

    async def export_student(self, student_id: str) -> ExportStudentResponse:
        """Returns all that is held of a student; asks for page after page."""
        export = ExportStudentResponse()
        request = ExportStudentRequest(student_id=student_id)
        with typed_errors():
            while True:
                page = await self._students.ExportStudent(request)
                export.MergeFrom(page)
                if not page.next_page_token:
                    export.next_page_token = ""
                    return export
                request.page_token = page.next_page_token

    async def health(self) -> GetHealthResponse:
        """Returns whether the server can clone and, if not, why."""
        with typed_errors():
            return await self._clones.GetHealth(GetHealthRequest())
