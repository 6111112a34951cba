"""Erasing a student's records from a real Valkey, while answers get lost and others erase and accept clones."""

import pytest

from cloning_server.clone import CloneState
from cloning_server.clones.records import NO_LEASE, ErasedRecords
from cloning_server.clones.registry import Registry
from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.settings import CloningSettings
from mesh.errors import CloneNotFound
from mesh.valkey.connection import open_redis
from testing.parts.fault_proxy import FaultProxy, Way
from tests.cloning_server.clones.conftest import next_change
from tests.cloning_server.conftest import STUDENT, baseline


async def finished_clone(registry: Registry, *, request_id: str = "") -> str:
    """Starts a clone and ends it; returns its id."""
    clone = await registry.intake.start(STUDENT, baseline(), request_id=request_id)
    await registry.changes.write(next_change(clone, CloneState.COMPLETED), token=NO_LEASE)
    return clone.clone_id


async def test_an_erasure_whose_answer_is_lost_still_tells_what_it_removed(
    registry: Registry, settings: CloningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for request_id in ("", "enrol-17"):
        await finished_clone(registry, request_id=request_id)
    host, _, port = settings.redis_url.removesuffix("/0").rpartition(":")
    async with FaultProxy(int(port)) as proxy, open_redis(f"{host}:{proxy.port}/0") as redis:
        behind_proxy = UpkeepStore(redis, tenant=settings.tenant)
        # From now on Valkey has the script, so that it runs at the first call.
        assert await behind_proxy.erase("nobody") == ErasedRecords(clones=0, request_ids=0)
        erase = behind_proxy._erase

        async def erase_and_lose_answer(**named: object) -> object:
            proxy.cut_next(Way.ANSWERS)
            return await erase(**named)  # type: ignore[arg-type] # passed on as they came

        monkeypatch.setattr(behind_proxy, "_erase", erase_and_lose_answer)
        assert await behind_proxy.erase(STUDENT) == ErasedRecords(clones=2, request_ids=1)


async def test_an_erasure_that_another_overtook_leaves_nothing_of_a_clone_accepted_since(
    registry: Registry, upkeep_store: UpkeepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await finished_clone(registry)
    erase = upkeep_store._erase
    late_ids = []

    async def erase_late(**named: object) -> object:
        monkeypatch.undo()
        assert await upkeep_store.erase(STUDENT)
        late_ids.append(await finished_clone(registry))
        return await erase(**named)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(upkeep_store, "_erase", erase_late)
    # As many clones as it has read, and other ones.
    assert await upkeep_store.erase(STUDENT) is None
    assert await upkeep_store.erase(STUDENT) == ErasedRecords(clones=1, request_ids=0)
    with pytest.raises(CloneNotFound):
        await registry.changes.find(late_ids[0])
    assert (await registry.listing.list_clones()).clones == ()
