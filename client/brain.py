"""A client of the brain server.

    async with BrainClient("127.0.0.1:50051") as brain:
        reply = await brain.generate(GenerateRequest(prompt="Why is the sky blue?"))

Takes and returns the messages of `aivo.brain.v1`; failed calls raise an `AivoError`.
"""

from collections.abc import AsyncGenerator

from aivo.brain.v1.brain_service_pb2 import (
    AssessRequest,
    AssessResponse,
    GenerateRequest,
    GenerateResponse,
    GenerateStreamRequest,
    GenerateStreamResponse,
    GetHealthRequest,
    GetHealthResponse,
    StudentContext,
)
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub

from client.calls import Client, typed_errors


class BrainClient(Client):
    """Asks the Main Brain. Raises what every `Client` raises."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._stub = BrainServiceStub(self._channel)

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Returns the whole reply."""
        with typed_errors():
            return await self._stub.Generate(request, metadata=_route(request.context))

    async def stream(self, request: GenerateStreamRequest) -> AsyncGenerator[GenerateStreamResponse, None]:
        """Yields the reply as it is decoded, `finished` last; closing the generator stops the decoding."""
        call = self._stub.GenerateStream(request, metadata=_route(request.context))
        try:
            with typed_errors():
                async for message in call:
                    yield message
        finally:
            call.cancel()

    async def assess(self, request: AssessRequest) -> AssessResponse:
        """Returns the verdict on a student's answer."""
        with typed_errors():
            return await self._stub.Assess(request, metadata=_route(request.context))

    async def health(self) -> GetHealthResponse:
        """Returns whether the server can answer and, if not, why."""
        with typed_errors():
            return await self._stub.GetHealth(GetHealthRequest())


def _route(context: StudentContext) -> tuple[tuple[str, str], ...]:
    # The gateway routes calls with the same id to the replica that has the student's adapter in memory. What no header
    # can hold is no id; the server says so.
    student_id = context.student_id
    return (("x-student-id", student_id),) if student_id and student_id.isascii() and student_id.isprintable() else ()
