"""How a scripted server answers: the calls that reached it, and how they go wrong."""

import asyncio
from collections import deque
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

# The base model that both servers name.
BASE_MODEL = "SmolLM2-135M-Instruct"

Context = grpc.aio.ServicerContext[Message, Message]


def failure(code: grpc.StatusCode, reason: str, **facts: str) -> status_pb2.Status:
    """An error as the servers send it."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="aivo", metadata=facts))
    return status_pb2.Status(code=code.value[0], message=f"it failed with {reason}", details=[detail])


def info(reason: str) -> dict[str, str]:
    """The `ErrorInfo` that every error has, as JSON."""
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "aivo"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that reached the server. `seconds_left` is the time to its deadline; None without one."""

    rpc: str
    request: Message
    metadata: dict[str, str | bytes]
    seconds_left: float | None


class Script:
    """The calls of a servicer, and how they go wrong.

    Attributes:
        calls: All calls, in order.
        failures: Each call removes the first, if there is one, and fails with it; None lets the call pass.
        late_error: A reply's stream fails with it after its first message, and a clone at once; None for no failure.
        hold: Calls wait until it is set: unary ones before the answer, streams before each message but the first.
        cancelled: Is set when a call is cancelled while it waits.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.failures: deque[status_pb2.Status | None] = deque()
        self.late_error: status_pb2.Status | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = asyncio.Event()

    async def enter(self, rpc: str, request: Message, context: Context) -> None:
        """Records the call; fails it if the script says so."""
        seconds_left = context.time_remaining()
        metadata = dict(context.invocation_metadata() or ())
        self.calls.append(Call(rpc=rpc, request=request, metadata=metadata, seconds_left=seconds_left))
        error = self.failures.popleft() if self.failures else None
        if error is not None:
            await context.abort_with_status(rpc_status.to_status(error))

    async def wait_while_held(self) -> None:
        """Waits until the test releases the calls."""
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
