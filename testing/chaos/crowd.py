"""Students whose clones run while parts fail, and the changes that their watches receive.

Callers behave as AIVO's clients should: they repeat a request with its id until a server accepts it, and resume a watch
after the last change that they received, at any server.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import cloning_service_pb2_grpc as pb_grpc
from google.protobuf import json_format

from testing.baseline import start_body

FINAL = ("completed", "failed", "cancelled")
# A paused server accepts connections and never answers.
CALL_SECONDS = 5.0
# Longer than the servers' heartbeat: a server that is silent for longer is down.
SILENCE_SECONDS = 8.0
# Between attempts, as a client would wait.
RETRY_SECONDS = 0.2
# Share of the clones whose student has had one before. The gate may refuse their second model, which is an end too.
COME_AGAIN = 0.25
# The status of a call whose server, or a store behind it, fails during the call.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


@dataclass(slots=True, kw_only=True)
class CloneHistory:
    """An accepted clone, and every change of it that its watches received, in order."""

    clone_id: str
    student_id: str
    changes: list[pb.WatchCloneResponse] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The status in the last change received."""
        return self.changes[-1].status if self.changes else ""


class Crowd:
    """Keeps a number of clones running.

    Args:
        servers: The cloning servers; any may be down at any time.
        chance: Draws students and servers.

    Attributes:
        histories: Of all accepted clones.
    """

    def __init__(self, servers: Sequence["pb_grpc.CloningServiceAsyncStub"], *, chance: random.Random) -> None:
        self._servers = servers
        self._chance = chance
        self._status_events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._students = 0
        self._is_closed = False
        self.histories: list[CloneHistory] = []

    async def clone(self, *, at_once: int) -> None:
        """Keeps `at_once` clones running; returns after `close`, when all have ended."""
        async with asyncio.TaskGroup() as going:
            for _ in range(at_once):
                going.create_task(self._clone_students())

    @property
    def unfinished(self) -> dict[str, str]:
        """The clones that have not ended, each with the last status received."""
        return {history.clone_id: history.status for history in self.histories if history.status not in FINAL}

    def close(self) -> None:
        """Starts no more clones."""
        self._is_closed = True

    async def reach(self, status: str) -> None:
        """Returns when a watch receives the next change to this status."""
        await self._status_events[status].wait()

    async def _clone_students(self) -> None:
        while not self._is_closed:
            history = await self._start(self._next_student())
            self.histories.append(history)
            while history.status not in FINAL:
                await self._watch(history)

    def _next_student(self) -> str:
        if self._students and self._chance.random() < COME_AGAIN:
            return f"student-{self._chance.randrange(self._students)}"
        self._students += 1
        return f"student-{self._students - 1}"

    async def _start(self, student_id: str) -> CloneHistory:
        body = start_body(student_id, request_id=f"request-{self._chance.getrandbits(64):x}", queue_behind=True)
        request = json_format.ParseDict(body, pb.StartCloneRequest())
        while True:
            try:
                response = await self._any_server().StartClone(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                # ABORTED: the student already has two clones that have not ended.
                if error.code() not in _PASSING | {grpc.StatusCode.ABORTED}:
                    raise
            else:
                return CloneHistory(clone_id=response.clone_id, student_id=student_id)
            await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self, history: CloneHistory) -> None:
        """Watches at one server until it is silent for too long, fails, or sends the final state."""
        after = history.changes[-1].sequence if history.changes else 0
        call = self._any_server().WatchClone(pb.WatchCloneRequest(clone_id=history.clone_id, after_sequence=after))
        try:
            while (change := await asyncio.wait_for(call.read(), SILENCE_SECONDS)) is not grpc.aio.EOF:
                assert isinstance(change, pb.WatchCloneResponse)
                if not change.heartbeat:
                    history.changes.append(change)
                    self._status_events.pop(change.status, asyncio.Event()).set()
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            call.cancel()

    def _any_server(self) -> "pb_grpc.CloningServiceAsyncStub":
        return self._chance.choice(self._servers)
