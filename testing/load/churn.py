"""Churn: requests of many students at once, in random order, while adapters come, go and change.

A seed decides the requests and what happens meanwhile: bursts of requests, greedy, sampled and with a JSON schema;
callers who leave before the first word or in the middle of a reply; short deadlines; new active versions; evictions.
Every reply is recorded, for `testing.models.reference_replies` to check.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum, auto

from brain_server.engine.contract import Generation, Reply, Sampling
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.manifest import Manifest
from mesh.adapters.store import AdapterStore
from mesh.errors import DeadlineExceeded
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile
from testing.adapters import publish
from testing.models.random_adapters import Widths, random_weights, recipe

SCHEMA = '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}'
# The longer text takes several steps to read.
TEXTS = ("Hi!", "Please tell me why plants are green, and why the sky is blue, but not too much at once.")
MAX_TOKENS = {TEXTS[0]: 6, TEXTS[1]: 3}
SEEDS = 4
# Size of an adapter's update relative to the base model's map: large, so that no two students get the same reply.
STRENGTH = 0.3
# Low, so that few tokens are likely. Among a thousand nearly equal ones, the last bits of a sum would decide.
_TEMPERATURE = 0.1


class ReplyKind(Enum):
    """How a reply is decoded."""

    GREEDY = auto()
    SAMPLED = auto()
    SCHEMA = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnRequest:
    """One request, and how long its caller waits.

    Attributes:
        student_id: The student; None for the base model.
        text: What the student says.
        kind: How the reply is decoded.
        seed: Seed of the sampling.
        close_after_pieces: Pieces of the reply after which the caller closes the stream; None for never.
        cancel_after_seconds: Seconds after which the caller cancels, whatever has arrived; None for never.
        deadline_seconds: Seconds to the deadline; None for no deadline.
    """

    student_id: str | None
    text: str
    kind: ReplyKind
    seed: int
    close_after_pieces: int | None = None
    cancel_after_seconds: float | None = None
    deadline_seconds: float | None = None

    @property
    def generation(self) -> Generation:
        """The request as the engine takes it, with the deadline counted from now."""
        is_sampled = self.kind is ReplyKind.SAMPLED
        return Generation(
            prompt=Prompt(
                profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text=self.text),), instruction="Be a tutor."
            ),
            student_id=self.student_id,
            sampling=Sampling(
                temperature=_TEMPERATURE if is_sampled else 0.0,
                top_p=0.9,
                seed=self.seed if is_sampled else None,
                max_tokens=12 if self.kind is ReplyKind.SCHEMA else MAX_TOKENS[self.text],
            ),
            json_schema=SCHEMA if self.kind is ReplyKind.SCHEMA else None,
            deadline=None if self.deadline_seconds is None else time.monotonic() + self.deadline_seconds,
        )


@dataclass(slots=True, kw_only=True)
class ReplyRecord:
    """What the caller of a request received.

    Attributes:
        request: The request.
        pieces: Text of the reply.
        versions: One of these had to answer; several if the active version changed meanwhile.
        reply: The whole reply; None if the caller left before its end, or the deadline passed.
        has_expired: Whether the deadline passed.
    """

    request: ChurnRequest
    pieces: list[str] = field(default_factory=list)
    versions: frozenset[int] = frozenset()
    reply: Reply | None = None
    has_expired: bool = False


@dataclass(slots=True, kw_only=True)
class _ActiveVersions:
    """A student's active versions, oldest first. A request may get any of them from the index `current` on."""

    versions: list[int]
    current: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


async def publish_students(
    store: AdapterStore, *, count: int, versions: int, widths: Widths, base_digest: str
) -> dict[str, list[Manifest]]:
    """Publishes students with so many versions each, all different. The latest version of each is active.

    Returns:
        The manifests of each student, oldest first, by student id.
    """
    students: dict[str, list[Manifest]] = {f"student-{number:03}": [] for number in range(count)}

    async def publish_versions(number: int, manifests: list[Manifest], student_id: str) -> None:
        for version in range(versions):
            weights = random_weights(versions * number + version, strength=STRENGTH, widths=widths)
            manifests.append(await publish(store, student_id, weights, recipe=recipe(base_digest=base_digest)))

    async with asyncio.TaskGroup() as group:
        for number, (student_id, manifests) in enumerate(students.items()):
            group.create_task(publish_versions(number, manifests, student_id))
    return students


class Churn:
    """Sends random requests to an engine, and changes adapters meanwhile.

    Attributes:
        activations: Number of times that another version was made active.
        evictions: Number of adapters that were evicted on request.
    """

    def __init__(
        self, engine: TorchEngine, store: AdapterStore, *, students: Mapping[str, Sequence[Manifest]], seed: int
    ) -> None:
        """Prepares the students.

        Args:
            engine: Answers the requests.
            store: Has the students' versions.
            students: Manifests of each student's versions, oldest first; the last is active.
            seed: Seed of everything that is random.
        """
        self.activations = 0
        self.evictions = 0
        self._engine = engine
        self._store = store
        self._students = students
        self._active = {
            student: _ActiveVersions(versions=[manifests[-1].ref.version]) for student, manifests in students.items()
        }
        self._rng = random.Random(seed)

    async def run(self, requests: int, *, max_concurrent: int) -> list[ReplyRecord]:
        """Sends requests, at most `max_concurrent` at once. Returns the records when all requests have ended."""
        rng = self._rng
        students = list(self._students)
        tasks: set[asyncio.Task[None]] = set()
        records: list[ReplyRecord] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                records.append(ReplyRecord(request=self._random_request()))
                tasks.add(group.create_task(self._send(records[-1])))
                if rng.random() < 0.05:
                    tasks.add(group.create_task(self._activate_another(rng.choice(students))))
                if rng.random() < 0.05:
                    tasks.add(group.create_task(self._evict(rng.choice(students))))
                # A burst up to the limit, then a lull in which all but a few end.
                max_tasks = rng.randrange(max_concurrent) if len(tasks) >= max_concurrent else max_concurrent
                while len(tasks) > max_tasks:
                    _, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return records

    def _random_request(self) -> ChurnRequest:
        rng = self._rng
        fate = rng.random()
        return ChurnRequest(
            student_id=None if rng.random() < 0.1 else rng.choice(list(self._students)),
            text=rng.choice(TEXTS),
            kind=rng.choices(list(ReplyKind), weights=(85, 10, 5))[0],
            seed=rng.randrange(SEEDS),
            close_after_pieces=rng.randint(1, 4) if fate < 0.09 else None,
            cancel_after_seconds=rng.random() * 0.05 if 0.09 <= fate < 0.15 else None,
            deadline_seconds=rng.random() * 0.1 if 0.15 <= fate < 0.20 else None,
        )

    async def _send(self, record: ReplyRecord) -> None:
        """Sends the request, and cancels it when its caller would."""
        active = self._active.get(record.request.student_id or "")
        first_version = active.current if active else 0
        receiver = asyncio.create_task(self._receive(record))
        await asyncio.wait([receiver], timeout=record.request.cancel_after_seconds)
        if not receiver.done():
            receiver.cancel()
            await asyncio.wait([receiver])
        if active:
            record.versions = frozenset(active.versions[first_version:])
        if not receiver.cancelled():
            receiver.result()

    async def _receive(self, record: ReplyRecord) -> None:
        try:
            async with aclosing(self._engine.stream(record.request.generation)) as events:
                async for event in events:
                    if isinstance(event, Reply):
                        record.reply = event
                        return
                    record.pieces.append(event.text)
                    if len(record.pieces) == record.request.close_after_pieces:
                        return
        except DeadlineExceeded:
            record.has_expired = True

    async def _activate_another(self, student_id: str) -> None:
        """Makes another version the active one, and tells the engine as a notice does."""
        active = self._active[student_id]
        async with active.lock:
            versions = [manifest.ref.version for manifest in self._students[student_id]]
            active.versions.append(
                self._rng.choice([version for version in versions if version != active.versions[-1]])
            )
            await self._store.activate(student_id, active.versions[-1])
            self._engine.pointers.mark_stale(student_id)
            active.current = len(active.versions) - 1
            self.activations += 1

    async def _evict(self, student_id: str) -> None:
        self.evictions += len(await self._engine.evict(student_id))
