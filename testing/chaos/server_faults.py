"""Faults of servers that kills and pauses do not show."""

import asyncio
import random

from testing.chaos.aivo import Aivo
from testing.chaos.brains import second_brain_of, until_answers
from testing.chaos.crowd import Crowd
from testing.clock import shifted_clock
from testing.parts.ray_cluster import ACTOR

# Hours, and longer than students' data is kept.
_JUMPS_SECONDS = (-3 * 3600.0, 3 * 3600.0, 400 * 24 * 3600.0)
# Several turns of housekeeping.
CLOCK_SECONDS = 6.0
# Several clones.
DISK_SECONDS = 6.0


async def jump_clock(aivo: Aivo, chance: random.Random) -> None:
    """The wall clock of one server jumps, and comes back."""
    server = chance.choice([*aivo.cloning, aivo.brain])
    with shifted_clock(server.folder, chance.choice(_JUMPS_SECONDS)):
        await asyncio.sleep(CLOCK_SECONDS)


async def fill_disk(aivo: Aivo, chance: random.Random) -> None:
    """A cloning server and its trainer cannot write to any file."""
    with chance.choice(aivo.cloning).part.full_disk(ACTOR):
        await asyncio.sleep(DISK_SECONDS)


async def lose_one_of_two_brains(aivo: Aivo, crowd: Crowd, chance: random.Random) -> None:
    """A second brain comes and answers; then one of the two dies, and the other one answers."""
    student_id = await crowd.student_with_model()
    async with second_brain_of(aivo) as second_brain:
        await until_answers(second_brain, student_id)
        dying, staying = chance.sample((aivo.brain, second_brain), 2)
        await dying.part.kill()
        await until_answers(staying, student_id)
        if dying is aivo.brain:
            await dying.part.start()
