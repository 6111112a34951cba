"""Workers that perform random operations at the same time and die anywhere, and what must hold afterwards."""

import random
from contextlib import suppress
from dataclasses import replace

from mesh.adapters.blobs import Blobs, RemovedObjects
from mesh.adapters.store import AdapterStore, CloneVoided
from mesh.errors import ModelVersionNotFound, PublishConflict
from testing.adapters import publish
from testing.leftovers import leftovers
from tests.mesh.adapters.conftest import recipe, weights
from tests.mesh.adapters.faulty_blobs import Crash, MortalBlobs

CLONES = 8

# No worker deletes or retires a version of the first student, so all that is published for it stays.
LASTING_STUDENT, CHURNED_STUDENT = "kept", "churned"


class Worker:
    """Performs random operations of the store.

    Attributes:
        published: Clones of `LASTING_STUDENT` whose publication was acknowledged.
        voided: Clones that became void before they published.
    """

    def __init__(self, blobs: MortalBlobs, *, tenant: str, chance: random.Random, steps: int) -> None:
        self._chance = chance
        self._blobs = blobs
        self._store = AdapterStore(blobs, tenant=tenant)
        self._steps = steps
        self.published: set[str] = set()
        self.voided: set[str] = set()

    async def work(self) -> None:
        """Performs all operations."""
        often = (self._publish, self._publish, self._publish, self._activate, self._pin, self._read)
        for _ in range(self._steps):
            operation = self._chance.choice((*often, *often, self._void, self._retire, self._delete, self._sweep))
            self._blobs.restart()
            with suppress(Crash, CloneVoided, ModelVersionNotFound, PublishConflict):
                await operation()

    async def _publish(self) -> None:
        clone_id = self._draw_clone()
        student = clone_id.partition("_")[0]
        adapter, scale = weights(seed=self._chance.randrange(100)), self._chance.choice((0.5, 1.5))
        await publish(self._store, student, adapter, recipe=replace(recipe(clone_id), scale=scale))
        if student == LASTING_STUDENT:
            self.published.add(clone_id)

    async def _void(self) -> None:
        clone_id = self._draw_clone()
        if await self._store.void(clone_id) is None:
            self.voided.add(clone_id)

    async def _activate(self) -> None:
        await self._store.activate(*self._draw_version())

    async def _pin(self) -> None:
        change = self._store.pin if self._chance.random() < 0.5 else self._store.unpin
        await change(*self._draw_version())

    async def _read(self) -> None:
        student = self._draw_student()
        active = await self._store.resolve_active(student)
        if active is not None:
            await self._store.fetch(active.ref)
        await self._store.list_versions(student)

    async def _retire(self) -> None:
        await self._store.retire(CHURNED_STUDENT, keep=self._chance.choice((1, 2)))

    async def _delete(self) -> None:
        await self._store.delete_student(CHURNED_STUDENT)

    async def _sweep(self) -> None:
        await self._store.sweep(older_than_seconds=0)

    def _draw_student(self) -> str:
        return self._chance.choice((LASTING_STUDENT, CHURNED_STUDENT))

    def _draw_clone(self) -> str:
        return f"{self._draw_student()}_{self._chance.randrange(CLONES)}"

    def _draw_version(self) -> tuple[str, int]:
        return self._draw_student(), self._chance.randint(1, CLONES)


async def verify(blobs: Blobs, workers: list[Worker], *, tenant: str) -> None:
    """Sweeps once, asserts what must hold then, and deletes both students."""
    store = AdapterStore(blobs, tenant=tenant)
    await store.sweep(older_than_seconds=0)

    remaining_keys = await leftovers(blobs, store, tenant)
    assert not remaining_keys, f"after the sweep, {sorted(remaining_keys)} belong to no version"
    assert await blobs.forget_deleted(f"{tenant}/") == RemovedObjects(), "past versions of what was deleted"
    versions = {student: await store.list_versions(student) for student in (LASTING_STUDENT, CHURNED_STUDENT)}
    clones = [manifest.recipe.clone_id for student in versions for manifest in versions[student]]
    assert len(clones) == len(set(clones))
    assert not set(clones) & set().union(*(worker.voided for worker in workers))
    assert set().union(*(worker.published for worker in workers)) <= set(clones)
    for student, manifests in versions.items():
        numbers = {manifest.ref.version for manifest in manifests}
        active = await store.resolve_active(student)
        assert active is None or active.ref.version in numbers
        assert await store.list_pinned(student) <= numbers

    await store.delete_student(LASTING_STUDENT)
    await store.delete_student(CHURNED_STUDENT)
    voids = await blobs.keys(f"{tenant}/")
    assert all(key.startswith(f"{tenant}/_commits/") for key in voids)
    assert (await blobs.erase(f"{tenant}/")).objects == len(voids)
