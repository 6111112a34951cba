"""Adapters at hand: fetched once, bounded in bytes, leased by whoever uses them.

The identity of an adapter is its version together with the sha256 of its weights: a version number that came to name
other bytes never meets the old ones. Knows nothing of pointers, policies or the model, nor what an engine makes of an
adapter's weights.
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
    """An adapter at hand.

    Attributes:
        manifest: Of the version.
        content: What the engine made of its weights.
    """

    manifest: Manifest
    content: C

    @property
    def identity(self) -> LoadedAdapter:
        """Which version, and which bytes."""
        return LoadedAdapter(ref=self.manifest.ref, sha256=self.manifest.sha256)


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry(Generic[C]):
    adapter: HostAdapter[C]
    leases: int = 0
    last_used: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(slots=True, eq=False)
class _Fetching(Generic[C]):
    task: asyncio.Task[None] = field(init=False)
    waiters: int = 0
    entry: _Entry[C] | None = None


_Key = tuple[AdapterRef, str | None]
Fetch = Callable[[AdapterRef, str | None], Coroutine[object, object, HostAdapter[C]]]


class HostTier(Generic[C]):
    """The adapters at hand, least recently used first out. For the event loop alone."""

    def __init__(
        self,
        fetch: Fetch[C],
        *,
        limit_bytes: int,
        discard: Callable[[HostAdapter[C]], None] = lambda _adapter: None,
    ) -> None:
        """Takes where adapters come from and how many bytes of them may stay.

        Args:
            fetch: Reads a version from the store and checks it; given the sha256 if that is known.
            limit_bytes: Of weights. Adapters in use count and never leave, so they alone may exceed it.
            discard: Is given every adapter that has left, once no lease holds it.
        """
        self.counts = TierCounts()
        self._fetch = fetch
        self._limit_bytes = limit_bytes
        self._discard = discard
        self._entries: OrderedDict[LoadedAdapter, _Entry[C]] = OrderedDict()
        # Those that left while they were leased.
        self._leaving: dict[HostAdapter[C], _Entry[C]] = {}
        self._fetches: dict[_Key, _Fetching[C]] = {}

    @asynccontextmanager
    async def lease(self, ref: AdapterRef, *, sha256: str | None = None) -> AsyncIterator[HostAdapter[C]]:
        """Holds an adapter in memory, fetching it first if need be; callers who want the same one share the fetch.

        Args:
            ref: The version.
            sha256: Of its weights, as the pointer tells it; None for a version that is pinned.

        Raises:
            ModelVersionNotFound, AdapterCorrupt, AdapterIncompatible, AdapterStoreUnavailable: As the fetch does.
        """
        entry = self._find(ref, sha256)
        if entry is None:
            self.counts.misses += 1
            entry = await self._fetched(ref, sha256)
        else:
            self.counts.hits += 1
            self._entries.move_to_end(entry.adapter.identity)
            entry.leases += 1
        entry.last_used = datetime.now(UTC)
        try:
            yield entry.adapter
        finally:
            self._release(entry)

    def holds(self, ref: AdapterRef, *, sha256: str | None = None) -> bool:
        """Whether a lease would need no fetch."""
        return self._find(ref, sha256) is not None

    def residencies(self) -> list[Residency]:
        """What is in memory, most recently used first."""
        return [
            Residency(
                adapter=identity,
                tier=Tier.HOST,
                bytes=entry.adapter.manifest.size_bytes,
                leases=entry.leases,
                last_used=entry.last_used,
            )
            for identity, entry in reversed(self._entries.items())
        ]

    def evict(self, student_id: str) -> list[LoadedAdapter]:
        """Drops a student's adapters: no later lease meets them, and the memory goes with the last lease."""
        for ref, sha256 in [key for key in self._fetches if key[0].student_id == student_id]:
            # Those who wait for it get it, but it does not stay.
            del self._fetches[ref, sha256]
        dropped = [identity for identity in self._entries if identity.ref.student_id == student_id]
        for identity in dropped:
            self._drop(identity)
        return dropped

    async def close(self) -> None:
        """Ends the fetches that are under way."""
        fetches = [fetch.task for fetch in self._fetches.values()]
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    def _drop(self, identity: LoadedAdapter) -> None:
        entry = self._entries.pop(identity)
        self.counts.bytes -= entry.adapter.manifest.size_bytes
        if entry.leases:
            self._leaving[entry.adapter] = entry
        else:
            self._discard(entry.adapter)

    def _find(self, ref: AdapterRef, sha256: str | None) -> _Entry[C] | None:
        if sha256 is not None:
            return self._entries.get(LoadedAdapter(ref=ref, sha256=sha256))
        return next((entry for identity, entry in reversed(self._entries.items()) if identity.ref == ref), None)

    async def _fetched(self, ref: AdapterRef, sha256: str | None) -> _Entry[C]:
        """Fetches an adapter, or waits for the fetch under way; the caller has a lease on what is returned."""
        key = (ref, sha256)
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = _Fetching()
            fetch.task = asyncio.create_task(self._bring(key, fetch))
            fetch.task.add_done_callback(_seen)
        fetch.waiters += 1
        try:
            # One caller who gives up does not take the fetch from the others.
            await asyncio.shield(fetch.task)
        except BaseException:
            fetch.waiters -= 1
            if fetch.entry is not None:
                self._release(fetch.entry)
            raise
        assert fetch.entry is not None
        return fetch.entry

    async def _bring(self, key: _Key, fetch: _Fetching[C]) -> None:
        """Fetches, and puts what came into the table in the same step in which the fetch ends."""
        try:
            adapter = await self._fetch(*key)
        finally:
            stays = self._fetches.get(key) is fetch
            if stays:
                del self._fetches[key]
        entry = self._entries.get(adapter.identity)
        if entry is not None:
            # A pinned version and the active one may be the same, and were fetched side by side.
            self._discard(adapter)
        else:
            entry = _Entry(adapter=adapter)
            self._entries[adapter.identity] = entry
            self.counts.bytes += adapter.manifest.size_bytes
        # Leased before anything can leave, as those who waited go on a moment later.
        entry.leases += fetch.waiters
        fetch.entry = entry
        if not stays:
            self._drop(adapter.identity)
        self._shrink()

    def _release(self, entry: _Entry[C]) -> None:
        entry.leases -= 1
        if entry.leases == 0 and self._leaving.pop(entry.adapter, None) is not None:
            self._discard(entry.adapter)
        self._shrink()

    def _shrink(self) -> None:
        if self.counts.bytes <= self._limit_bytes:
            return
        for identity in [identity for identity, entry in self._entries.items() if entry.leases == 0]:
            self._drop(identity)
            self.counts.evictions += 1
            if self.counts.bytes <= self._limit_bytes:
                return


def _seen(ended: asyncio.Task[None]) -> None:
    """Marks an error as seen, as every caller may have given up."""
    if not ended.cancelled():
        ended.exception()
