"""What the host tier promises an engine that keeps more than memory for an adapter: it is told when one has left."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from brain_server.adapters.host_tier import HostAdapter, HostTier
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterStoreUnavailable
from testing.models.random_adapters import recipe

REF = AdapterRef(student_id="ada", version=1)
SHA256 = "a" * 64


class Shelf:
    """A store whose fetches end when told to, and a record of what was discarded."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.fails = False
        self.made: list[HostAdapter[int]] = []
        self.discarded: list[HostAdapter[int]] = []

    def tier(self, *, limit_bytes: int = 100) -> HostTier[int]:
        return HostTier(self._fetch, limit_bytes=limit_bytes, discard=self.discarded.append)

    async def _fetch(self, ref: AdapterRef, _sha256: str | None) -> HostAdapter[int]:
        await self.open.wait()
        if self.fails:
            raise AdapterStoreUnavailable("down")
        manifest = Manifest.of(b"0123456789", ref=ref, recipe=recipe(base_digest="d" * 64))
        self.made.append(HostAdapter(manifest=manifest, content=len(self.made)))
        return self.made[-1]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


async def test_an_adapter_without_room_serves_those_who_waited_and_is_discarded_after_the_last(shelf: Shelf) -> None:
    tier = shelf.tier(limit_bytes=0)
    shelf.open.set()
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(tier.lease(REF)) for _ in range(2)]
        assert held == [shelf.made[0]] * 2
        assert shelf.discarded == []
    assert shelf.discarded == shelf.made
    assert (tier.residencies(), tier.counts.bytes) == ([], 0)


async def test_an_adapter_evicted_while_it_is_fetched_is_discarded_after_its_last_lease(shelf: Shelf) -> None:
    tier = shelf.tier()

    async def use() -> None:
        async with tier.lease(REF):
            assert shelf.discarded == []

    using = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0)
    tier.evict(REF.student_id)
    shelf.open.set()
    await asyncio.gather(*using)
    assert shelf.discarded == shelf.made
    assert tier.residencies() == []


async def test_an_adapter_that_nobody_waits_for_any_more_stays_for_the_next_unless_it_was_evicted(
    shelf: Shelf,
) -> None:
    for evicted in (False, True):
        tier = shelf.tier()
        shelf.open.clear()
        waiting = asyncio.create_task(tier.lease(REF).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        if evicted:
            tier.evict(REF.student_id)
        shelf.open.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (len(tier.residencies()), len(shelf.discarded)) == ((0, 1) if evicted else (1, 0))


async def test_the_same_adapter_fetched_as_a_pin_and_as_the_active_one_is_kept_once(shelf: Shelf) -> None:
    tier = shelf.tier()
    shelf.open.set()
    sha256 = Manifest.of(b"0123456789", ref=REF, recipe=recipe(base_digest="d" * 64)).sha256
    async with AsyncExitStack() as stack:
        leases = (stack.enter_async_context(lease) for lease in (tier.lease(REF), tier.lease(REF, sha256=sha256)))
        one, other = await asyncio.gather(*leases)
        assert one is other
        assert len(shelf.made) == 2
        assert shelf.discarded == [made for made in shelf.made if made is not one]
    assert [residency.leases for residency in tier.residencies()] == [0]


async def test_a_fetch_that_fails_fails_all_who_wait_and_the_next_one_tries_again(shelf: Shelf) -> None:
    tier = shelf.tier()
    shelf.fails = True
    shelf.open.set()
    for _ in range(2):
        leases = (tier.lease(REF).__aenter__() for _ in range(2))
        errors = await asyncio.gather(*leases, return_exceptions=True)
        assert {type(error) for error in errors} == {AdapterStoreUnavailable}
    shelf.fails = False
    async with tier.lease(REF) as held:
        assert held is shelf.made[0]
