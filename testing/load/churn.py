"""Churn: many students' requests at once, in no order, while adapters come, go and change.

What is asked and what happens meanwhile is drawn from a seed: bursts of requests, greedy, sampled and under a schema;
callers who hang up before the first word or in the middle of a reply; short deadlines; new active versions; evictions.
Everything that was heard is kept, to be judged by `testing.models.reference_replies`.
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
from testing.models.random_adapters import Widths, random_weights, recipe

SCHEMA = '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}'
# The longer one is read in several stretches.
TEXTS = ("Hi!", "Please tell me why plants are green, and why the sky is blue, but not too much at once.")
MAX_TOKENS = {TEXTS[0]: 6, TEXTS[1]: 3}
SEEDS = 4
# Of an adapter's update against the base model's map: loud, so that no two students say the same.
STRENGTH = 0.3
# A few tokens are likely. Of a thousand nearly even ones, the last bits of a sum decide which a random number falls on.
_TEMPERATURE = 0.1


class Kind(Enum):
    """How a reply is decoded."""

    GREEDY = auto()
    SAMPLED = auto()
    SCHEMA = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, and how patient its caller is.

    Attributes:
        student_id: None for the base model.
        text: What the student says.
        kind: How the reply is decoded.
        seed: Of the sampling.
        leaves_after: Pieces of the reply after which the caller closes the stream; None stays.
        hangs_up_after: Seconds after which the caller is gone, whatever was heard; None stays.
        patience: Seconds to the deadline; None has none.
    """

    student_id: str | None
    text: str
    kind: Kind
    seed: int
    leaves_after: int | None = None
    hangs_up_after: float | None = None
    patience: float | None = None

    @property
    def generation(self) -> Generation:
        """The request, from now on."""
        sampled = self.kind is Kind.SAMPLED
        return Generation(
            prompt=Prompt(
                profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text=self.text),), instruction="Be a tutor."
            ),
            student_id=self.student_id,
            sampling=Sampling(
                temperature=_TEMPERATURE if sampled else 0.0,
                top_p=0.9,
                seed=self.seed if sampled else None,
                max_tokens=12 if self.kind is Kind.SCHEMA else MAX_TOKENS[self.text],
            ),
            json_schema=SCHEMA if self.kind is Kind.SCHEMA else None,
            deadline=None if self.patience is None else time.monotonic() + self.patience,
        )


@dataclass(slots=True, kw_only=True)
class Heard:
    """What came of a request.

    Attributes:
        asked: The request.
        pieces: Of the reply.
        versions: One of these had to answer; more than one if the active version changed meanwhile.
        reply: None if the caller left before its end, or the deadline passed.
        expired: Whether the deadline passed.
    """

    asked: Asked
    pieces: list[str] = field(default_factory=list)
    versions: frozenset[int] = frozenset()
    reply: Reply | None = None
    expired: bool = False


@dataclass(slots=True, kw_only=True)
class _Active:
    """A student's active versions, oldest first; a request may meet those from `settled` on."""

    versions: list[int]
    settled: int = 0
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)


async def publish_students(
    store: AdapterStore, *, count: int, versions: int, widths: Widths, base_digest: str
) -> dict[str, list[Manifest]]:
    """So many students with so many versions each, all different; the latest is active."""
    students: dict[str, list[Manifest]] = {f"student-{number:03}": [] for number in range(count)}

    async def publish(number: int, manifests: list[Manifest], student_id: str) -> None:
        for version in range(versions):
            weights = random_weights(versions * number + version, strength=STRENGTH, widths=widths)
            manifests.append(await store.publish(student_id, weights, recipe=recipe(base_digest=base_digest)))

    async with asyncio.TaskGroup() as group:
        for number, (student_id, manifests) in enumerate(students.items()):
            group.create_task(publish(number, manifests, student_id))
    return students


class Churn:
    """Asks an engine."""

    def __init__(
        self, engine: TorchEngine, store: AdapterStore, *, students: Mapping[str, Sequence[Manifest]], seed: int
    ) -> None:
        """Takes who asks.

        Args:
            engine: Answers.
            store: Where the students' versions are.
            students: The versions of each, oldest first; the last is active.
            seed: Of all that is drawn.
        """
        self.flips = 0
        self.evictions = 0
        self._engine = engine
        self._store = store
        self._students = students
        self._active = {
            student: _Active(versions=[manifests[-1].ref.version]) for student, manifests in students.items()
        }
        self._chance = random.Random(seed)

    async def run(self, requests: int, *, most: int) -> list[Heard]:
        """Asks so many requests, at most so many at once, and returns what came of them when all have ended."""
        chance = self._chance
        students = list(self._students)
        running: set[asyncio.Task[None]] = set()
        heard: list[Heard] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                heard.append(Heard(asked=self._draw()))
                running.add(group.create_task(self._ask(heard[-1])))
                if chance.random() < 0.05:
                    running.add(group.create_task(self._flip(chance.choice(students))))
                if chance.random() < 0.05:
                    running.add(group.create_task(self._evict(chance.choice(students))))
                # A burst up to the most, then a lull in which all but a few end.
                lull = chance.randrange(most) if len(running) >= most else most
                while len(running) > lull:
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return heard

    def _draw(self) -> Asked:
        chance = self._chance
        fate = chance.random()
        return Asked(
            student_id=None if chance.random() < 0.1 else chance.choice(list(self._students)),
            text=chance.choice(TEXTS),
            kind=chance.choices(list(Kind), weights=(85, 10, 5))[0],
            seed=chance.randrange(SEEDS),
            leaves_after=chance.randint(1, 4) if fate < 0.09 else None,
            hangs_up_after=chance.random() * 0.05 if 0.09 <= fate < 0.15 else None,
            patience=chance.random() * 0.1 if 0.15 <= fate < 0.20 else None,
        )

    async def _ask(self, heard: Heard) -> None:
        """Asks, and is gone when the caller would be."""
        active = self._active.get(heard.asked.student_id or "")
        first = active.settled if active else 0
        listening = asyncio.create_task(self._listen(heard))
        await asyncio.wait([listening], timeout=heard.asked.hangs_up_after)
        if not listening.done():
            listening.cancel()
            await asyncio.wait([listening])
        if active:
            heard.versions = frozenset(active.versions[first:])
        if not listening.cancelled():
            listening.result()

    async def _listen(self, heard: Heard) -> None:
        try:
            async with aclosing(self._engine.stream(heard.asked.generation)) as events:
                async for event in events:
                    if isinstance(event, Reply):
                        heard.reply = event
                        return
                    heard.pieces.append(event.text)
                    if len(heard.pieces) == heard.asked.leaves_after:
                        return
        except DeadlineExceeded:
            heard.expired = True

    async def _flip(self, student_id: str) -> None:
        """Makes another version the active one, and tells the engine as a notice does."""
        active = self._active[student_id]
        async with active.moving:
            others = [one.ref.version for one in self._students[student_id] if one.ref.version != active.versions[-1]]
            active.versions.append(self._chance.choice(others))
            await self._store.activate(student_id, active.versions[-1])
            self._engine.pointers.doubt(student_id)
            active.settled = len(active.versions) - 1
            self.flips += 1

    async def _evict(self, student_id: str) -> None:
        self.evictions += len(await self._engine.evict(student_id))
