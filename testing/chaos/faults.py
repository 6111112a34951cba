"""Faults: a part is killed as a crash would kill it, or paused, and then comes back."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from testing.parts.part import Part
from testing.parts.ray_cluster import ACTOR

RAYLET = "raylet"
# Longer than a lease, so that another server claims the clones of the paused one.
PAUSED_LEASES = 1.5
# Between checks whether the process to kill has started.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that faults strike.

    Attributes:
        cloning: The cloning servers, each with its own Ray.
        lease_seconds: Of their clones.
        s3_seconds: How long S3 is down.
    """

    cloning: Sequence[Part]
    brain: Part
    redis: Part
    s3: Part
    lease_seconds: float
    s3_seconds: float


class Faults:
    """Strikes parts.

    Args:
        parts: The parts to strike.
        chance: Chooses among several.

    Attributes:
        counts: Number of strikes per kind.
    """

    def __init__(self, parts: Parts, *, chance: random.Random) -> None:
        self._parts = parts
        self._chance = chance
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "cloning_server": lambda: self._restart(self._server()),
            "training_actor": lambda: self._kill_child(ACTOR),
            "ray_node": lambda: self._kill_child(RAYLET),
            "valkey": lambda: self._restart(parts.redis),
            "s3": lambda: self._restart(parts.s3, away_seconds=parts.s3_seconds),
            "brain": lambda: self._restart(parts.brain),
            "pause": self._pause,
        }
        self.counts: Counter[str] = Counter()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of faults."""
        return tuple(self._kinds)

    async def strike(self, kind: str) -> None:
        """Returns when the part runs again; it may not be ready yet."""
        self.counts[kind] += 1
        await self._kinds[kind]()

    def _server(self) -> Part:
        return self._chance.choice(self._parts.cloning)

    async def _restart(self, part: Part, *, away_seconds: float = 0.0) -> None:
        await part.kill()
        await asyncio.sleep(away_seconds)
        await part.start()

    async def _kill_child(self, name: str) -> None:
        while not self._server().kill_child(name):  # noqa: ASYNC110 - the process belongs to Ray
            await asyncio.sleep(_LOOK_SECONDS)

    async def _pause(self) -> None:
        part = self._server()
        part.pause()
        try:
            await asyncio.sleep(self._parts.lease_seconds * PAUSED_LEASES)
        finally:
            part.resume()
