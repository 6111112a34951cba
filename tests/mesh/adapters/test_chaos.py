"""Workers that do everything at once and die anywhere, on the real S3: what holds then, whatever the order.

A seed decides what is done, not in which order the store does it, so a failure may need more than one run to come back.
"""

import asyncio
import random
from contextlib import suppress

import pytest

from mesh.adapters.blobs import Blobs
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, CloneVoided
from mesh.errors import ModelVersionNotFound, PublishConflict
from testing.leftovers import leftovers
from tests.mesh.adapters.conftest import recipe, weights
from tests.mesh.adapters.faulty_blobs import Crash, Watched

WORKERS = 5
STEPS = 12
CLONES = 8
CRASHES = 0.05
# Of one call; several times what SeaweedFS takes.
LONGEST_PAUSE_SECONDS = 0.02

# Nobody deletes or retires anything of the first one: what was published there stays.
KEPT, CHURNED = "kept", "churned"


class ChaoticBlobs(Watched):
    """A process that pauses before each call, and dies before some."""

    def __init__(self, blobs: Blobs, *, chance: random.Random) -> None:
        super().__init__(blobs)
        self._chance = chance

    async def _before(self, *, writes: bool) -> None:
        if writes and self._chance.random() < CRASHES:
            raise Crash
        await asyncio.sleep(self._chance.choice((0, 0, self._chance.random() * LONGEST_PAUSE_SECONDS)))


class Worker:
    """One after another of the store's operations, drawn by chance.

    Attributes:
        published: Clones of the student who is kept, whose publication was acknowledged.
        voided: Clones that were void before they had published.
    """

    def __init__(self, blobs: Blobs, *, tenant: str, seed: str) -> None:
        self._chance = random.Random(seed)
        self._store = AdapterStore(ChaoticBlobs(blobs, chance=self._chance), tenant=tenant)
        self.published: set[str] = set()
        self.voided: set[str] = set()

    async def work(self) -> None:
        often = (self._publish, self._publish, self._publish, self._activate, self._pin, self._read)
        for _ in range(STEPS):
            operation = self._chance.choice((*often, *often, self._void, self._retire, self._delete, self._sweep))
            with suppress(Crash, CloneVoided, ModelVersionNotFound, PublishConflict):
                await operation()

    async def _publish(self) -> None:
        clone_id = self._clone()
        student = clone_id.partition("_")[0]
        await self._store.publish(student, weights(seed=self._chance.randrange(100)), recipe=recipe(clone_id))
        if student == KEPT:
            self.published.add(clone_id)

    async def _void(self) -> None:
        clone_id = self._clone()
        if await self._store.void(clone_id) is None:
            self.voided.add(clone_id)

    async def _activate(self) -> None:
        await self._store.activate(*self._version())

    async def _pin(self) -> None:
        await self._store.pin(*self._version(), pinned=self._chance.random() < 0.5)

    async def _read(self) -> None:
        student = self._student()
        active = await self._store.resolve_active(student)
        if active is not None:
            await self._store.fetch(active.ref)
        await self._store.list_versions(student)

    async def _retire(self) -> None:
        await self._store.retire(CHURNED, keep=self._chance.choice((1, 2)))

    async def _delete(self) -> None:
        await self._store.delete_student(CHURNED)

    async def _sweep(self) -> None:
        await self._store.sweep(older_than_seconds=0)

    def _student(self) -> str:
        return self._chance.choice((KEPT, CHURNED))

    def _clone(self) -> str:
        return f"{self._student()}_{self._chance.randrange(CLONES)}"

    def _version(self) -> tuple[str, int]:
        return self._student(), self._chance.randint(1, CLONES)


@pytest.fixture(params=(False, True), ids=("plain", "versioned"))
def bucket_of_any_kind(request: pytest.FixtureRequest, blobs: S3Blobs, versioned: S3Blobs) -> S3Blobs:
    return versioned if request.param else blobs


@pytest.mark.parametrize("seed", random.Random().sample(range(2**32), 4))
async def test_after_any_chaos_each_clone_has_one_whole_version_or_none_and_nothing_else_is_left(
    bucket_of_any_kind: S3Blobs, tenant: str, seed: int
) -> None:
    blobs = bucket_of_any_kind
    workers = [Worker(blobs, tenant=tenant, seed=f"{seed}-{number}") for number in range(WORKERS)]
    async with asyncio.TaskGroup() as working:
        for worker in workers:
            working.create_task(worker.work())
    store = AdapterStore(blobs, tenant=tenant)
    await store.sweep(older_than_seconds=0)

    assert await leftovers(blobs, store, tenant) == set()
    versions = {student: await store.list_versions(student) for student in (KEPT, CHURNED)}
    clones = [manifest.recipe.clone_id for student in versions for manifest in versions[student]]
    assert len(clones) == len(set(clones))
    assert not set(clones) & set().union(*(worker.voided for worker in workers))
    assert set().union(*(worker.published for worker in workers)) <= set(clones)
    for student, manifests in versions.items():
        numbers = {manifest.ref.version for manifest in manifests}
        active = await store.resolve_active(student)
        assert active is None or active.ref.version in numbers
        assert await store.pinned(student) <= numbers

    await store.delete_student(KEPT)
    await store.delete_student(CHURNED)
    voids = await blobs.keys(f"{tenant}/")
    assert all(key.startswith(f"{tenant}/_commits/") for key in voids)
    assert (await blobs.erase(f"{tenant}/")).objects == len(voids)
