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
# Share of the clones whose student has had one before, and has not come again yet.
COME_AGAIN = 0.25
# The status of a call whose server, or a store behind it, fails during the call.
PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


@dataclass(slots=True, kw_only=True)
class CloneHistory:
    """An accepted clone, and every change of it that its watches received, in order.

    Attributes:
        is_repeat: Whether it learns from the start what an earlier clone of the student learns: the gate may refuse it.
        is_gone: Whether a server did not know it, as after its student's deletion.
    """

    clone_id: str
    student_id: str
    is_repeat: bool = False
    is_gone: bool = False
    changes: list[pb.WatchCloneResponse] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The status in the last change received."""
        return self.changes[-1].status if self.changes else ""

    @property
    def has_ended(self) -> bool:
        """Whether no more changes come."""
        return self.is_gone or self.status in FINAL


class Crowd:
    """Keeps a number of clones running.

    Args:
        servers: The cloning servers; any may be down at any time.
        chance: Draws students and servers.

    Attributes:
        histories: Of all accepted clones of students who stay.
        deleted: Of the clones of students who are deleted.
    """

    def __init__(self, servers: Sequence["pb_grpc.CloningServiceAsyncStub"], *, chance: random.Random) -> None:
        self._servers = servers
        self._chance = chance
        self._status_events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._students = 0
        self._canaries = 0
        # The only clone of each student who may come again.
        self._only_clones: list[CloneHistory] = []
        self._is_closed = False
        self.histories: list[CloneHistory] = []
        self.deleted: list[CloneHistory] = []

    async def clone(self, *, at_once: int) -> None:
        """Keeps `at_once` clones running; returns after `close`, when all have ended."""
        async with asyncio.TaskGroup() as going:
            for _ in range(at_once):
                going.create_task(self._clone_students())

    def close(self) -> None:
        """Starts no more clones."""
        self._is_closed = True

    async def reach(self, status: str) -> None:
        """Returns when a watch receives the next change to this status."""
        await self._status_events[status].wait()

    async def student_with_model(self) -> str:
        """Returns some student who has a model, as soon as there is one."""
        while not (students := [each.student_id for each in self.histories if each.status == "completed"]):
            await self.reach("completed")
        return self._chance.choice(students)

    async def canary(self) -> CloneHistory:
        """Starts a clone of a new student, and returns at its end."""
        self._canaries += 1
        history = await self.start(f"canary-{self._canaries}")
        self.histories.append(history)
        await self.follow(history)
        return history

    async def start(self, student_id: str, *, base_version: int | None = None, is_repeat: bool = False) -> CloneHistory:
        """Starts a clone as soon as a server accepts it; the caller keeps its history.

        Args:
            student_id: The student.
            base_version: Version to train on from; None for a fresh adapter.
            is_repeat: See `CloneHistory`.
        """
        body = start_body(student_id, request_id=f"request-{self._chance.getrandbits(64):x}", queue_behind=True)
        request = json_format.ParseDict(body, pb.StartCloneRequest())
        if base_version is not None:
            request.base_version = base_version
        while True:
            try:
                response = await self._any_server().StartClone(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                # ABORTED: the student already has two clones that have not ended.
                if error.code() not in PASSING | {grpc.StatusCode.ABORTED}:
                    raise
            else:
                return CloneHistory(clone_id=response.clone_id, student_id=student_id, is_repeat=is_repeat)
            await asyncio.sleep(RETRY_SECONDS)

    async def follow(self, history: CloneHistory) -> None:
        """Watches at one server after another until the clone has ended."""
        while not history.has_ended:
            await self._watch(history)

    async def _clone_students(self) -> None:
        while not self._is_closed:
            if self._only_clones and self._chance.random() < COME_AGAIN:
                history = await self._start_again(self._pop_only_clone())
            else:
                self._students += 1
                history = await self.start(f"student-{self._students}")
                self._only_clones.append(history)
            self.histories.append(history)
            await self.follow(history)

    async def _start_again(self, first: CloneHistory) -> CloneHistory:
        """Trains on from the student's model, which makes a better one; without it, repeats what the first learned."""
        if first.status == "completed":
            return await self.start(first.student_id, base_version=first.changes[-1].model.version)
        return await self.start(first.student_id, is_repeat=True)

    def _pop_only_clone(self) -> CloneHistory:
        return self._only_clones.pop(self._chance.randrange(len(self._only_clones)))

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
            if error.code() is grpc.StatusCode.NOT_FOUND:
                history.is_gone = True
            elif error.code() not in PASSING:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            call.cancel()

    def _any_server(self) -> "pb_grpc.CloningServiceAsyncStub":
        return self._chance.choice(self._servers)
