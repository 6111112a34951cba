"""When an adapter leaves the host tier and is discarded, for engines that hold more than memory for it."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from brain_server.adapters.host_tier import HostAdapter, HostTier
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterStoreUnavailable
from testing.models.random_adapters import recipe

REF = AdapterRef(student_id="ada", version=1)
SHA256 = "a" * 64


class ControlledStore:
    """A store whose fetches wait for an event, and a record of the discarded adapters."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.fails = False
        self.fetches = 0
        self.before_failing: Callable[[], object] = lambda: None
        self.fetched_adapters: list[HostAdapter[int]] = []
        self.discarded: list[HostAdapter[int]] = []

    def tier(self, *, limit_bytes: int = 100) -> HostTier[int]:
        return HostTier(self._fetch, limit_bytes=limit_bytes, discard=self.discarded.append)

    async def _fetch(self, ref: AdapterRef, _sha256: str | None) -> HostAdapter[int]:
        self.fetches += 1
        await self.released.wait()
        if self.fails:
            self.before_failing()
            raise AdapterStoreUnavailable("down")
        manifest = Manifest.of(b"0123456789", ref=ref, recipe=recipe(base_digest="d" * 64))
        self.fetched_adapters.append(HostAdapter(manifest=manifest, content=len(self.fetched_adapters)))
        return self.fetched_adapters[-1]


@pytest.fixture
def controlled_store() -> ControlledStore:
    return ControlledStore()


async def test_an_adapter_beyond_the_limit_serves_its_waiting_callers_and_is_then_discarded(
    controlled_store: ControlledStore,
) -> None:
    tier = controlled_store.tier(limit_bytes=0)
    controlled_store.released.set()
    async with AsyncExitStack() as stack:
        leased_adapters = [await stack.enter_async_context(tier.lease(REF)) for _ in range(2)]
        assert leased_adapters == [controlled_store.fetched_adapters[0]] * 2
        assert controlled_store.discarded == []
    assert controlled_store.discarded == controlled_store.fetched_adapters
    assert (tier.residencies(), tier.counts.bytes) == ([], 0)


async def test_an_adapter_evicted_while_it_is_fetched_is_discarded_after_its_last_lease(
    controlled_store: ControlledStore,
) -> None:
    tier = controlled_store.tier()

    async def use() -> None:
        async with tier.lease(REF):
            assert controlled_store.discarded == []

    tasks = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0)
    tier.evict(REF.student_id)
    controlled_store.released.set()
    await asyncio.gather(*tasks)
    assert controlled_store.discarded == controlled_store.fetched_adapters
    assert tier.residencies() == []


async def test_an_adapter_whose_callers_were_cancelled_stays_in_memory_unless_it_was_evicted(
    controlled_store: ControlledStore,
) -> None:
    for is_evicted in (False, True):
        tier = controlled_store.tier()
        controlled_store.released.clear()
        caller = asyncio.create_task(tier.lease(REF).__aenter__())
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        if is_evicted:
            tier.evict(REF.student_id)
        controlled_store.released.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (len(tier.residencies()), len(controlled_store.discarded)) == ((0, 1) if is_evicted else (1, 0))


async def test_an_adapter_fetched_by_version_and_as_the_active_one_is_in_memory_once(
    controlled_store: ControlledStore,
) -> None:
    tier = controlled_store.tier()
    controlled_store.released.set()
    sha256 = Manifest.of(b"0123456789", ref=REF, recipe=recipe(base_digest="d" * 64)).sha256
    async with AsyncExitStack() as stack:
        leases = (stack.enter_async_context(lease) for lease in (tier.lease(REF), tier.lease(REF, sha256=sha256)))
        by_version, by_digest = await asyncio.gather(*leases)
        assert by_version is by_digest
        assert len(controlled_store.fetched_adapters) == 2
        assert controlled_store.discarded == [
            adapter for adapter in controlled_store.fetched_adapters if adapter is not by_version
        ]
    assert [residency.leases for residency in tier.residencies()] == [0]


async def test_a_failed_fetch_fails_for_all_waiting_callers_and_the_next_caller_fetches_again(
    controlled_store: ControlledStore,
) -> None:
    tier = controlled_store.tier()
    controlled_store.fails = True
    controlled_store.released.set()
    for _ in range(2):
        leases = (tier.lease(REF).__aenter__() for _ in range(2))
        errors = await asyncio.gather(*leases, return_exceptions=True)
        assert {type(error) for error in errors} == {AdapterStoreUnavailable}
    controlled_store.fails = False
    async with tier.lease(REF) as adapter:
        assert adapter is controlled_store.fetched_adapters[0]


async def test_a_caller_between_a_failed_fetch_and_its_waiting_caller_fetches_nothing(
    controlled_store: ControlledStore,
) -> None:
    tier = controlled_store.tier()
    controlled_store.fails = True
    controlled_store.released.set()
    late: list[asyncio.Task[HostAdapter[int]]] = []

    async def lease() -> HostAdapter[int]:
        async with tier.lease(REF) as adapter:
            return adapter

    # The task starts after the fetch has failed, and before the caller that waits for it goes on.
    controlled_store.before_failing = lambda: late.append(asyncio.create_task(lease()))
    with pytest.raises(AdapterStoreUnavailable):
        await lease()
    with pytest.raises(AdapterStoreUnavailable):
        await late[0]
    assert len(late) == controlled_store.fetches == 1
