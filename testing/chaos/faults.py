"""Faults: a part is killed as a crash would kill it, or paused, or fails in some other way, and then comes back."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

from testing.chaos.aivo import LEASE_SECONDS, Aivo
from testing.chaos.crowd import Crowd
from testing.chaos.deletion import delete_students
from testing.chaos.server_faults import fill_disk, jump_clock, lose_one_of_two_brains
from testing.chaos.store_faults import hang_s3, lose_answers, refuse_writes
from testing.parts.part import Part
from testing.parts.ray_cluster import ACTOR

RAYLET = "raylet"
# Longer than a lease, so that another server claims the clones of the paused one.
PAUSED_LEASES = 1.5
# Students of one strike who are deleted.
DELETED = 2
# Longer than any strike takes.
STRIKE_SECONDS = 300.0
# Between checks whether the process to kill has started.
_LOOK_SECONDS = 0.1


class Faults:
    """Strikes parts.

    Args:
        aivo: Whose parts.
        crowd: Its callers.
        chance: Chooses among several parts.

    Attributes:
        counts: Number of strikes per kind; those within another strike count too.
    """

    def __init__(self, aivo: Aivo, crowd: Crowd, *, chance: random.Random) -> None:
        self._aivo = aivo
        self._crowd = crowd
        self._chance = chance
        self._of_stores: dict[str, Callable[[], Awaitable[None]]] = {
            "valkey": lambda: self._restart(aivo.redis.part),
            "refuse_writes": lambda: refuse_writes(aivo, chance),
            "lost_answer": lambda: lose_answers(aivo),
            "s3": lambda: self._restart(aivo.s3.part, away_seconds=aivo.outage_seconds),
            "hang_s3": lambda: hang_s3(aivo),
        }
        self._of_servers: dict[str, Callable[[], Awaitable[None]]] = {
            "cloning_server": lambda: self._restart(self._server()),
            "training_actor": lambda: self._kill_child(ACTOR),
            "ray_node": lambda: self._kill_child(RAYLET),
            "brain": lambda: self._restart(aivo.brain.part),
            "pause": self._pause,
            "clock_jump": lambda: jump_clock(aivo, chance),
        }
        # Elsewhere, nobody can limit the files of another process.
        if sys.platform == "linux":
            self._of_servers["disk_full"] = lambda: fill_disk(aivo, chance)
        self._kinds = {
            **self._of_stores,
            **self._of_servers,
            "second_brain": lambda: lose_one_of_two_brains(aivo, crowd, chance),
            "delete_under_strikes": self._delete_under_strikes,
            "two_at_once": self._strike_two_at_once,
        }
        self.counts: Counter[str] = Counter()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of faults."""
        return tuple(self._kinds)

    async def strike(self, kind: str) -> None:
        """Returns when the part runs again; it may not be ready yet."""
        self.counts[kind] += 1
        async with asyncio.timeout(STRIKE_SECONDS):
            await self._kinds[kind]()

    async def _delete_under_strikes(self) -> None:
        number = self.counts["delete_under_strikes"]
        await delete_students(
            self._aivo,
            self._crowd,
            student_ids=[f"deleted-{number}-{place}" for place in range(DELETED)],
            strike=self._strike_two_at_once,
            chance=self._chance,
        )

    async def _strike_two_at_once(self) -> None:
        """Strikes a store and a server: on the same part, one fault might hide the other."""
        kinds = (self._chance.choice(list(self._of_stores)), self._chance.choice(list(self._of_servers)))
        await asyncio.gather(*map(self.strike, kinds))

    def _server(self) -> Part:
        return self._chance.choice(self._aivo.cloning).part

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
            await asyncio.sleep(LEASE_SECONDS * PAUSED_LEASES)
        finally:
            part.resume()
