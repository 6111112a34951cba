"""Students who want models while parts fail, and all that they are told of their clones.

A caller does as AIVO's clients should: it repeats a request under its id until some server takes it, and resumes a
watch from the last change that it saw, at whichever server answers.
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
# A server that is paused takes calls and never answers.
CALL_SECONDS = 5.0
# More than the servers' heartbeat: whoever is silent for longer is gone.
SILENCE_SECONDS = 8.0
# Between tries, as a client would.
RETRY_SECONDS = 0.2
# Of those who come, how many come again. The gate may find that a second model is no better, which is an end as well.
COME_AGAIN = 0.25
# What a call ends with when its server, or what that stands on, goes away under it.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


@dataclass(slots=True, kw_only=True)
class Heard:
    """A clone that was accepted, and every change of it that was told, in the order of its telling."""

    clone_id: str
    student_id: str
    changes: list[pb.WatchCloneResponse] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The last one told."""
        return self.changes[-1].status if self.changes else ""


class Crowd:
    """Keeps some clones going, always at some server.

    Args:
        servers: Of the cloning servers; any may be away at any time.
        chance: Draws students and servers.

    Attributes:
        heard: Of every clone that was accepted.
    """

    def __init__(self, servers: Sequence["pb_grpc.CloningServiceAsyncStub"], *, chance: random.Random) -> None:
        self._servers = servers
        self._chance = chance
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._students = 0
        self._closed = False
        self.heard: list[Heard] = []

    async def clone(self, *, at_once: int) -> None:
        """Keeps so many clones going; returns when all have ended after `close`."""
        async with asyncio.TaskGroup() as going:
            for _ in range(at_once):
                going.create_task(self._come_and_go())

    @property
    def under_way(self) -> dict[str, str]:
        """The clones that have not ended, each with the status last told."""
        return {heard.clone_id: heard.status for heard in self.heard if heard.status not in FINAL}

    def close(self) -> None:
        """Nobody comes any more."""
        self._closed = True

    async def reach(self, status: str) -> None:
        """Returns when the next clone is told to be there."""
        await self._reached[status].wait()

    async def _come_and_go(self) -> None:
        while not self._closed:
            heard = await self._start(self._someone())
            self.heard.append(heard)
            while heard.status not in FINAL:
                await self._listen(heard)

    def _someone(self) -> str:
        if self._students and self._chance.random() < COME_AGAIN:
            return f"student-{self._chance.randrange(self._students)}"
        self._students += 1
        return f"student-{self._students - 1}"

    async def _start(self, student_id: str) -> Heard:
        body = start_body(student_id, request_id=f"request-{self._chance.getrandbits(64):x}", queue_behind=True)
        request = json_format.ParseDict(body, pb.StartCloneRequest())
        while True:
            try:
                started = await self._any().StartClone(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                # Two of the student's clones are under way already.
                if error.code() not in _PASSING | {grpc.StatusCode.ABORTED}:
                    raise
            else:
                return Heard(clone_id=started.clone_id, student_id=student_id)
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self, heard: Heard) -> None:
        """Listens to one server until it falls silent, fails or has told the end."""
        after = heard.changes[-1].sequence if heard.changes else 0
        call = self._any().WatchClone(pb.WatchCloneRequest(clone_id=heard.clone_id, after_sequence=after))
        try:
            while (change := await asyncio.wait_for(call.read(), SILENCE_SECONDS)) is not grpc.aio.EOF:
                assert isinstance(change, pb.WatchCloneResponse)
                if not change.heartbeat:
                    heard.changes.append(change)
                    self._reached.pop(change.status, asyncio.Event()).set()
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            call.cancel()

    def _any(self) -> "pb_grpc.CloningServiceAsyncStub":
        return self._chance.choice(self._servers)
