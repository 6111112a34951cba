"""What goes wrong, a part at a time: each is killed as a crash kills it, or paused, and comes back."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from testing.parts.part import Part
from testing.parts.ray_cluster import ACTOR

RAYLET = "raylet"
# Longer than its lease, so that another takes what it had.
PAUSED_LEASES = 1.5
# Until a process that is to be killed is there at all.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What may fail.

    Attributes:
        cloning: The cloning servers, each with a Ray of its own.
        lease_seconds: Of their clones.
        s3_seconds: How long S3 is away.
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
        parts: Are struck.
        chance: Says which of several.

    Attributes:
        counts: Strikes by kind.
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
        """Everything that can be struck."""
        return tuple(self._kinds)

    async def strike(self, kind: str) -> None:
        """Returns when the part is up again, if not yet at work."""
        self.counts[kind] += 1
        await self._kinds[kind]()

    def _server(self) -> Part:
        return self._chance.choice(self._parts.cloning)

    async def _restart(self, part: Part, *, away_seconds: float = 0.0) -> None:
        await part.kill()
        await asyncio.sleep(away_seconds)
        await part.start()

    async def _kill_child(self, name: str) -> None:
        while not self._server().kill_child(name):  # noqa: ASYNC110 - a process of someone else's
            await asyncio.sleep(_LOOK_SECONDS)

    async def _pause(self) -> None:
        part = self._server()
        part.pause()
        try:
            await asyncio.sleep(self._parts.lease_seconds * PAUSED_LEASES)
        finally:
            part.resume()
