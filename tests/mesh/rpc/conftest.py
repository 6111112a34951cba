"""A brain that answers as a test says, behind a real server; and what it logged."""

import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1 import brain_service_pb2_grpc as pb_grpc

from mesh import log
from mesh.rpc.calls import Context
from mesh.rpc.server import Server

# Quoted, as it is in the type stubs alone.
BrainStub: TypeAlias = "pb_grpc.BrainServiceAsyncStub"
SERVICE = "aivo.brain.v1.BrainService"


class ScriptedBrain(pb_grpc.BrainServiceServicer):
    """A servicer whose behaviour each test sets."""

    def __init__(self) -> None:
        self.ready = True
        self.generate: Callable[[pb.GenerateRequest, Context], Awaitable[pb.GenerateResponse]] = _echo
        self.stream: Callable[[pb.GenerateStreamRequest, Context], AsyncIterator[pb.GenerateStreamResponse]] = _words

    def raises(self, error: BaseException) -> None:
        """Makes both calls fail, the stream after its first message."""

        async def generate(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
            raise error

        async def stream(
            request: pb.GenerateStreamRequest, context: Context
        ) -> AsyncIterator[pb.GenerateStreamResponse]:
            yield pb.GenerateStreamResponse(sequence=1, text="so far")
            raise error

        self.generate, self.stream = generate, stream

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Awaitable[pb.GenerateResponse]:
        return self.generate(request, context)

    def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        return self.stream(request, context)

    async def Assess(self, request: pb.AssessRequest, context: Any) -> pb.AssessResponse:
        return pb.AssessResponse(correctness=100)

    async def GetHealth(self, request: pb.GetHealthRequest, context: Any) -> pb.GetHealthResponse:
        return pb.GetHealthResponse(status="healthy")


async def _echo(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
    return pb.GenerateResponse(response=request.prompt)


async def _words(request: pb.GenerateStreamRequest, context: Context) -> AsyncIterator[pb.GenerateStreamResponse]:
    for sequence, word in enumerate(request.prompt.split(), start=1):
        yield pb.GenerateStreamResponse(sequence=sequence, text=word)


class Logs:
    """What was logged, one mapping a line."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        """All of it as written."""
        return self._stream.getvalue()

    def of(self, event: str, **facts: object) -> list[dict[str, Any]]:
        """The lines of an event that have these facts."""
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if line["event"] == event and facts.items() <= line.items()]


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Logs]:
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        log.configure(level="info", form="json", service="test", packages=("mesh",))
    yield Logs(stream)
    root.handlers[:] = handlers
    root.setLevel(level)


@asynccontextmanager
async def serving(
    brain: ScriptedBrain,
    *,
    port: int = 0,
    metrics_port: int | None = None,
    drain_seconds: float = 5,
    reflection: bool = True,
    caller_limit: int = 100,
    idle_seconds: int | None = None,
) -> AsyncIterator[Server]:
    """Runs a server with the brain."""
    server = Server(
        host="127.0.0.1",
        port=port,
        metrics_port=metrics_port,
        drain_seconds=drain_seconds,
        reflection=reflection,
        caller_limit=caller_limit,
        idle_seconds=idle_seconds,
    )
    server.add(pb_grpc.add_BrainServiceServicer_to_server, brain, service=SERVICE, ready=lambda: brain.ready)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def calling(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A plain channel, without retries."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=(("grpc.enable_retries", 0),)) as channel:
        yield channel


@pytest.fixture
def brain() -> ScriptedBrain:
    return ScriptedBrain()


@pytest.fixture
async def server(brain: ScriptedBrain, logs: Logs) -> AsyncIterator[Server]:
    async with serving(brain) as running:
        yield running


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with calling(server) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> BrainStub:
    return pb_grpc.BrainServiceStub(channel)
