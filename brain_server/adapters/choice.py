"""Chooses the adapter that answers a request, or says why the Main Brain answers.

Of the Main Brain it knows only the digest, to which an adapter must belong.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from brain_server.adapters.host_tier import HostAdapter, HostTier
from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.engine.contract import AdapterPolicy, Fallback, Generation, LoadedAdapter
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import AdapterRef
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.errors import (
    AdapterCorrupt,
    AdapterOutdated,
    AdapterStoreUnavailable,
    ModelVersionNotFound,
    StudentModelNotFound,
    adapter_errors_name,
)
from mesh.log import get_logger

C = TypeVar("C")

# Outdated versions that are remembered, so that their students' requests read nothing. Each takes about 300 bytes.
_OUTDATED_LIMIT = 10_000

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoice(Generic[C]):
    """What answers a request. Exactly one of the two is set.

    Attributes:
        adapter: The student's adapter.
        fallback: Why the Main Brain answers instead.
    """

    adapter: HostAdapter[C] | None = None
    fallback: Fallback | None = None


class StudentAdapters(Generic[C]):
    """Brings the students' adapters from the store to the engine, by each request's policy.

    Attributes:
        pointers: Each student's active version.
        host: The adapters in memory.
        main_brain: Digest of the Main Brain, to which adapters must belong.
    """

    def __init__(
        self,
        store: AdapterStore,
        *,
        base_digest: str,
        pointers: ActivePointers,
        prepare: Callable[[StoredAdapter], Awaitable[C]],
        host_bytes: int,
        choice_seconds: float,
        discard: Callable[[HostAdapter[C]], None] = lambda _adapter: None,
    ) -> None:
        """Takes the source of the adapters, and how the engine uses them.

        Args:
            store: Where versions are published.
            base_digest: Digest of the Main Brain; adapters that were made on another one are outdated.
            pointers: Each student's active version.
            prepare: Converts a checked file to what the engine needs. Raises `AdapterCorrupt` or
                `AdapterIncompatible`.
            host_bytes: Most bytes of weights to keep in memory.
            choice_seconds: How long a request waits for its adapter before the Main Brain answers. The fetch goes on.
            discard: Called with an adapter that left memory, once it is no longer in use.
        """
        self.pointers = pointers
        self.host = HostTier(self._fetch, limit_bytes=host_bytes, discard=discard)
        self.main_brain = base_digest
        self._store = store
        self._prepare = prepare
        self._choice_seconds = choice_seconds
        # Digests of the Main Brains that outdated versions were made on; the least recently used comes first.
        self._outdated: OrderedDict[LoadedAdapter, str] = OrderedDict()

    @asynccontextmanager
    async def choose(self, generation: Generation) -> AsyncIterator[AdapterChoice[C]]:
        """Holds the adapter that answers. A broken adapter is an error under every policy, as it should be noticed.

        Waits for at most `choice_seconds`; a required adapter is fetched for as long as the store takes.

        Raises:
            StudentModelNotFound, ModelVersionNotFound, AdapterStoreUnavailable, AdapterOutdated: An adapter is
                required, and there is none, it can't be fetched, or it belongs to another Main Brain.
            AdapterCorrupt, AdapterIncompatible: It fails its checks.
        """
        async with AsyncExitStack() as stack:
            if generation.policy is AdapterPolicy.BASE_ONLY:
                choice: AdapterChoice[C] = AdapterChoice(fallback=Fallback.BASE_ONLY)
            elif generation.student_id is None:
                choice = AdapterChoice(fallback=Fallback.NO_STUDENT)
            else:
                choice = await self._of_student(stack, generation, generation.student_id)
            yield choice

    @asynccontextmanager
    async def lease(
        self, student_id: str, version: int | None = None, *, deadline: float | None = None
    ) -> AsyncIterator[HostAdapter[C]]:
        """Holds a student's adapter in memory.

        While the store does not answer, what it said last counts for a bounded time, if the adapter is in memory.

        Args:
            student_id: The student.
            version: The version; None for the active one.
            deadline: Until when to wait for the active version, in the event loop's clock; None waits for the store.

        Raises:
            StudentModelNotFound, ModelVersionNotFound: The student has no model, or not this version.
            AdapterStoreUnavailable: The store does not answer in time, and the adapter is not in memory.
            AdapterOutdated: It belongs to another Main Brain.
            AdapterCorrupt, AdapterIncompatible: It fails its checks.
        """
        async with AsyncExitStack() as stack:
            if version is not None:
                yield await self._lease_version(stack, self._store.ref(student_id, version))
            else:
                yield await self._lease_active(stack, student_id, deadline)

    def knows_model_of(self, student_id: str) -> bool:
        """Whether the store has said that the student has a model, by what it said last; never asks it."""
        return self.pointers.last_known(student_id) is not None

    def evict(self, student_id: str) -> list[LoadedAdapter]:
        """Forgets a student; returns the adapters that were in memory."""
        for identity in [identity for identity in self._outdated if identity.ref.student_id == student_id]:
            del self._outdated[identity]
        return self.host.evict(student_id)

    async def aclose(self) -> None:
        """Cancels what is being read from the store."""
        await self.host.close()
        await self.pointers.aclose()

    async def _of_student(self, stack: AsyncExitStack, generation: Generation, student_id: str) -> AdapterChoice[C]:
        required = generation.policy is AdapterPolicy.REQUIRE or generation.version is not None
        deadline = None if required else asyncio.get_running_loop().time() + self._choice_seconds
        try:
            lease = self.lease(student_id, generation.version, deadline=deadline)
            return AdapterChoice(adapter=await stack.enter_async_context(lease))
        except StudentModelNotFound:
            if required:
                raise
            return AdapterChoice(fallback=Fallback.NO_STUDENT_MODEL)
        except AdapterStoreUnavailable:
            if required:
                raise
            return AdapterChoice(fallback=Fallback.ADAPTER_STORE_UNAVAILABLE)
        except AdapterOutdated:
            if required:
                raise
            return AdapterChoice(fallback=Fallback.OUTDATED)

    async def _lease_active(self, stack: AsyncExitStack, student_id: str, deadline: float | None) -> HostAdapter[C]:
        active = await self._active(student_id)
        try:
            # An adapter that is in memory is leased without a wait, also when the pointer took all the time.
            async with asyncio.timeout_at(deadline):
                return await self._lease_current(stack, active)
        except TimeoutError:
            raise AdapterStoreUnavailable("the adapter was not fetched in time; the fetch goes on") from None

    async def _lease_current(self, stack: AsyncExitStack, active: ActiveAdapter) -> HostAdapter[C]:
        """Holds the active version, or the one that has replaced it since its pointer was read."""
        try:
            return await self._lease_if_current(stack, active)
        except (ModelVersionNotFound, AdapterCorrupt):
            # The version that the cached pointer names may have been deleted, or deleted and published again, since.
            student_id = active.ref.student_id
            fresh = await self.pointers.resolve(student_id, refresh=True)
            if fresh == active:
                raise
        if fresh is None:
            raise StudentModelNotFound(student_id=student_id)
        return await self._lease_if_current(stack, fresh)

    async def _lease_version(self, stack: AsyncExitStack, ref: AdapterRef) -> HostAdapter[C]:
        """Holds a version that the request names, if the store has it still: its student may have been deleted."""
        try:
            identity = await self.pointers.identify(ref)
        except ModelVersionNotFound:
            self.host.evict(ref.student_id, version=ref.version)
            raise
        except AdapterStoreUnavailable:
            last_known = self.pointers.last_known_version(ref)
            if last_known is None or not self.host.holds(ref, sha256=last_known.sha256):
                raise
            identity = last_known
        try:
            return await stack.enter_async_context(self.host.lease(ref, sha256=identity.sha256))
        except AdapterCorrupt:
            # The version may have been deleted, and its number published again, since it was read.
            fresh = await self.pointers.identify(ref, refresh=True)
            if fresh == identity:
                raise
        return await stack.enter_async_context(self.host.lease(ref, sha256=fresh.sha256))

    async def _lease_if_current(self, stack: AsyncExitStack, active: ActiveAdapter) -> HostAdapter[C]:
        """Holds the active version; remembers it if it is outdated, so that later requests read nothing."""
        ref, identity = active.ref, LoadedAdapter(ref=active.ref, sha256=active.sha256)
        if identity in self._outdated:
            self._outdated.move_to_end(identity)
            digest = self._outdated[identity]
            raise AdapterOutdated(student_id=ref.student_id, version=ref.version, base_digest=digest)
        try:
            return await stack.enter_async_context(self.host.lease(ref, sha256=active.sha256))
        except AdapterOutdated as error:
            # Requests that shared the fetch come here too.
            if identity not in self._outdated:
                _log.warning("student_model_outdated", ref=str(ref), base_digest=error.base_digest)
            self._outdated[identity] = error.base_digest
            if len(self._outdated) > _OUTDATED_LIMIT:
                self._outdated.popitem(last=False)
            raise

    async def _active(self, student_id: str) -> ActiveAdapter:
        try:
            active = await self.pointers.resolve(student_id)
        except AdapterStoreUnavailable:
            active = self.pointers.last_known(student_id)
            if active is None or not self.host.holds(active.ref, sha256=active.sha256):
                raise
        if active is None:
            # Of a student who was deleted, nothing stays in memory.
            self.host.evict(student_id)
            raise StudentModelNotFound(student_id=student_id)
        return active

    async def _fetch(self, ref: AdapterRef, sha256: str | None) -> HostAdapter[C]:
        started_at = time.monotonic()
        stored_adapter = await self._store.fetch(ref, sha256=sha256, base_digest=self.main_brain)
        with adapter_errors_name(ref.student_id, ref.version):
            adapter = HostAdapter(manifest=stored_adapter.manifest, content=await self._prepare(stored_adapter))
        self.host.counts.load_seconds += time.monotonic() - started_at
        return adapter
