"""Workers that perform random operations at the same time and die anywhere.

On the real S3 a seed decides the operations but not the order in which the store performs them, so a failure may need
several runs to occur again. Where a scheduler grants the turns, the seed decides the order too. `testing.seeds` says
how to repeat a run.
"""

import asyncio
import random
from collections.abc import Callable

import pytest

from mesh.adapters.blobs import Blobs
from mesh.adapters.s3 import S3Blobs
from testing.seeds import random_seeds
from tests.mesh.adapters.churn import Worker, verify
from tests.mesh.adapters.faulty_blobs import MortalBlobs
from tests.mesh.adapters.memory_blobs import MemoryBlobs, MemoryBucket
from tests.mesh.adapters.turns import TurnBlobs, Turns

WORKERS = 5
STEPS = 12
# Before one call; several times as long as SeaweedFS takes for it.
LONGEST_PAUSE_SECONDS = 0.02

# Seeds of orders of calls that once showed a fault.
REGRESSIONS = (
    pytest.param(3, id="past-versions-of-deleted-objects-stayed"),
    pytest.param(19, id="the-pointer-of-a-deleted-student-came-back"),
    pytest.param(38, id="a-commit-stayed-whose-manifest-was-void"),
    pytest.param(110, id="a-pointer-named-the-weights-of-a-deleted-version"),
    pytest.param(255, id="a-version-had-the-weights-of-another-clone"),
)


@pytest.fixture(params=(False, True), ids=("plain", "versioned"))
def bucket_of_any_kind(request: pytest.FixtureRequest, blobs: S3Blobs, versioned: S3Blobs) -> S3Blobs:
    return versioned if request.param else blobs


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs functions in the event loop that would run in a thread, which the scheduler cannot see."""

    async def call(function: Callable[..., object], *args: object, **kwargs: object) -> object:
        return function(*args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", call)


@random_seeds(4)
async def test_after_any_chaos_each_clone_has_one_whole_version_or_none_and_nothing_else_is_left(
    bucket_of_any_kind: S3Blobs, tenant: str, seed: int
) -> None:
    def worker(number: int) -> Worker:
        chance = random.Random(f"{seed}-{number}")

        async def pause() -> None:
            await asyncio.sleep(chance.choice((0, 0, chance.random() * LONGEST_PAUSE_SECONDS)))

        mortal = MortalBlobs(bucket_of_any_kind, chance=chance, pause=pause, death_percent=5)
        return Worker(mortal, tenant=tenant, chance=chance, steps=STEPS)

    workers = [worker(number) for number in range(WORKERS)]
    async with asyncio.TaskGroup() as working:
        for each in workers:
            working.create_task(each.work())

    await verify(bucket_of_any_kind, workers, tenant=tenant)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", REGRESSIONS)
async def test_orders_that_once_showed_a_fault_leave_nothing(versioned: S3Blobs, tenant: str, seed: int) -> None:
    turns, chance = _turns(seed)

    workers = await _churn(turns, chance, seed=seed, tenant=tenant, access=lambda: TurnBlobs(versioned, turns))

    await verify(versioned, workers, tenant=tenant)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("keeps_past", [False, True], ids=("plain", "versioned"))
@random_seeds(12)
async def test_no_order_of_single_steps_leaves_anything(*, keeps_past: bool, seed: int) -> None:
    bucket = MemoryBucket(keeps_past=keeps_past)
    turns, chance = _turns(seed)

    def access() -> Blobs:
        return MemoryBlobs(bucket, pause=turns.pause)

    workers = await _churn(turns, chance, seed=seed, tenant="school", access=access)

    await verify(MemoryBlobs(bucket), workers, tenant="school")


def _turns(seed: int) -> tuple[Turns, random.Random]:
    chance = random.Random(seed)
    return Turns(chance, sticky=chance.choice((0, 0.5, 0.8, 0.95, 0.99))), chance


async def _churn(
    turns: Turns, chance: random.Random, *, seed: int, tenant: str, access: Callable[[], Blobs]
) -> list[Worker]:
    death_percent, late_percent = chance.choice((0, 0, 2, 5, 20)), chance.choice((0, 2, 10))
    workers = []
    for number in range(WORKERS):
        choices = random.Random(f"{seed}-{number}")
        mortal = MortalBlobs(
            access(),
            chance=choices,
            pause=_go_on,
            death_percent=death_percent,
            late_percent=late_percent,
            deliver=turns.deliver,
        )
        workers.append(Worker(mortal, tenant=tenant, chance=choices, steps=STEPS))
    await turns.run([worker.work for worker in workers])
    return workers


async def _go_on() -> None:
    """Does not pause, because the scheduler does."""
