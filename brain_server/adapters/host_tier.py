"""A cache of adapters in host memory: each is fetched once and leased to its users; the total size is limited.

The identity of an adapter is its version together with the sha256 of its weights, so that a version number that was
published again with other bytes is another adapter. Knows nothing of pointers, policies or the model, nor what an
engine makes of an adapter's weights.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, TypeVar

from brain_server.engine.contract import LoadedAdapter, Residency, Tier, TierCounts
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostAdapter(Generic[C]):
    """An adapter in memory.

    Attributes:
        manifest: The version's manifest.
        content: What the engine made of its weights.
    """

    manifest: Manifest
    content: C

    @property
    def identity(self) -> LoadedAdapter:
        """Its version and the sha256 of its weights."""
        return LoadedAdapter(ref=self.manifest.ref, sha256=self.manifest.sha256)


@dataclass(slots=True, kw_only=True, eq=False)
class _ResidentAdapter(Generic[C]):
    adapter: HostAdapter[C]
    leases: int = 0
    last_used: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(slots=True, eq=False)
class _PendingFetch(Generic[C]):
    task: asyncio.Task[None] = field(init=False)
    waiters: int = 0
    resident: _ResidentAdapter[C] | None = None


_Key = tuple[AdapterRef, str | None]
Fetch = Callable[[AdapterRef, str | None], Coroutine[object, object, HostAdapter[C]]]


class HostTier(Generic[C]):
    """A cache of adapters that evicts the least recently used. For the event loop alone.

    Attributes:
        counts: Its counters and its present size.
    """

    def __init__(
        self,
        fetch: Fetch[C],
        *,
        limit_bytes: int,
        discard: Callable[[HostAdapter[C]], None] = lambda _adapter: None,
    ) -> None:
        """Takes the source of adapters and the limit.

        Args:
            fetch: Reads a version from the store and checks it; takes the sha256 if it is known.
            limit_bytes: Most bytes of weights. Adapters in use count too, but are never evicted, and so may exceed it.
            discard: Called with each adapter that left the cache, once no lease holds it.
        """
        self.counts = TierCounts()
        self._fetch = fetch
        self._limit_bytes = limit_bytes
        self._discard = discard
        self._residents: OrderedDict[LoadedAdapter, _ResidentAdapter[C]] = OrderedDict()
        # Adapters that left the cache while they were leased.
        self._leaving: dict[HostAdapter[C], _ResidentAdapter[C]] = {}
        self._fetches: dict[_Key, _PendingFetch[C]] = {}

    @asynccontextmanager
    async def lease(self, ref: AdapterRef, *, sha256: str | None = None) -> AsyncIterator[HostAdapter[C]]:
        """Holds an adapter in memory and fetches it first if it is missing; concurrent callers share one fetch.

        Args:
            ref: The version.
            sha256: sha256 of its weights, from the pointer; None for a version that the request names.

        Raises:
            ModelVersionNotFound, AdapterCorrupt, AdapterIncompatible, AdapterStoreUnavailable: The fetch failed.
        """
        resident = self._find(ref, sha256)
        if resident is None:
            self.counts.misses += 1
            resident = await self._fetch_and_lease(ref, sha256)
        else:
            self.counts.hits += 1
            self._residents.move_to_end(resident.adapter.identity)
            resident.leases += 1
        resident.last_used = datetime.now(UTC)
        try:
            yield resident.adapter
        finally:
            self._release(resident)

    def holds(self, ref: AdapterRef, *, sha256: str | None = None) -> bool:
        """Whether a lease would need no fetch."""
        return self._find(ref, sha256) is not None

    def residencies(self) -> list[Residency]:
        """Returns the adapters in memory, most recently used first."""
        return [
            Residency(
                adapter=identity,
                tier=Tier.HOST,
                bytes=resident.adapter.manifest.size_bytes,
                leases=resident.leases,
                last_used=resident.last_used,
            )
            for identity, resident in reversed(self._residents.items())
        ]

    def evict(self, student_id: str, *, version: int | None = None) -> list[LoadedAdapter]:
        """Drops a student's adapters and returns them. Later leases fetch again; the current ones are not affected.

        Args:
            student_id: The student.
            version: The only version to drop; None for all of them.
        """

        def is_meant(ref: AdapterRef) -> bool:
            return ref.student_id == student_id and version in (None, ref.version)

        for ref, sha256 in [key for key in self._fetches if is_meant(key[0])]:
            # Callers that wait for it get it, but it does not stay in memory.
            del self._fetches[ref, sha256]
        identities = [identity for identity in self._residents if is_meant(identity.ref)]
        for identity in identities:
            self._drop(identity)
        return identities

    async def close(self) -> None:
        """Cancels the pending fetches."""
        tasks = [pending.task for pending in self._fetches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, identity: LoadedAdapter) -> None:
        resident = self._residents.pop(identity)
        self.counts.bytes -= resident.adapter.manifest.size_bytes
        if resident.leases:
            self._leaving[resident.adapter] = resident
        else:
            self._discard(resident.adapter)

    def _find(self, ref: AdapterRef, sha256: str | None) -> _ResidentAdapter[C] | None:
        if sha256 is not None:
            return self._residents.get(LoadedAdapter(ref=ref, sha256=sha256))
        return next((resident for identity, resident in reversed(self._residents.items()) if identity.ref == ref), None)

    async def _fetch_and_lease(self, ref: AdapterRef, sha256: str | None) -> _ResidentAdapter[C]:
        """Fetches an adapter, or waits for the pending fetch. Returns it with a lease for the caller."""
        key = (ref, sha256)
        pending = self._fetches.get(key)
        if pending is None:
            pending = self._fetches[key] = _PendingFetch()
            pending.task = asyncio.create_task(self._complete_fetch(key, pending))
            pending.task.add_done_callback(_retrieve_error)
        pending.waiters += 1
        try:
            # A caller that is cancelled does not cancel the fetch for the others.
            await asyncio.shield(pending.task)
        except BaseException:
            pending.waiters -= 1
            if pending.task.done():
                self._forget(key, pending)
            if pending.resident is not None:
                self._release(pending.resident)
            raise
        assert pending.resident is not None
        return pending.resident

    async def _complete_fetch(self, key: _Key, pending: _PendingFetch[C]) -> None:
        """Fetches an adapter, and adds it in the same step of the event loop in which the fetch ends."""
        try:
            adapter = await self._fetch(*key)
        except BaseException:
            # A waiting caller forgets the fetch when it learns of the error: who comes in between learns of it too, and
            # reads nothing again.
            if not pending.waiters:
                self._forget(key, pending)
            raise
        stays = self._forget(key, pending)
        resident = self._residents.get(adapter.identity)
        if resident is not None:
            # A version that a request names and the active one may be the same, fetched side by side.
            self._discard(adapter)
        else:
            resident = _ResidentAdapter(adapter=adapter)
            self._residents[adapter.identity] = resident
            self.counts.bytes += adapter.manifest.size_bytes
        # Leased now, before anything can be evicted: the waiting callers continue only in a later step.
        resident.leases += pending.waiters
        pending.resident = resident
        if not stays:
            self._drop(adapter.identity)
        self._shrink()

    def _forget(self, key: _Key, pending: _PendingFetch[C]) -> bool:
        """Ends the sharing of a fetch; returns False if that has been done."""
        stays = self._fetches.get(key) is pending
        if stays:
            del self._fetches[key]
        return stays

    def _release(self, resident: _ResidentAdapter[C]) -> None:
        resident.leases -= 1
        if resident.leases == 0 and self._leaving.pop(resident.adapter, None) is not None:
            self._discard(resident.adapter)
        self._shrink()

    def _shrink(self) -> None:
        if self.counts.bytes <= self._limit_bytes:
            return
        for identity in [identity for identity, resident in self._residents.items() if resident.leases == 0]:
            self._drop(identity)
            self.counts.evictions += 1
            if self.counts.bytes <= self._limit_bytes:
                return


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Marks an error as retrieved, as every caller may have been cancelled; asyncio would log it otherwise."""
    if not task.cancelled():
        task.exception()
