"""Which adapter answers a request, or why the base model does.

Knows nothing of the model, but which base model's digest an adapter must have been trained on.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from brain_server.adapters.host_tier import HostAdapter, HostTier
from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.engine.contract import AdapterPolicy, Fallback, Generation
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import AdapterRef
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterStoreUnavailable,
    ModelVersionNotFound,
    StudentModelNotFound,
    adapter_errors_name,
)

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoice(Generic[C]):
    """What answers; exactly one of the two is set."""

    adapter: HostAdapter[C] | None = None
    fallback: Fallback | None = None


class StudentAdapters(Generic[C]):
    """The students' adapters, from the store to where the engine can use them, by the request's policy."""

    def __init__(
        self,
        store: AdapterStore,
        *,
        base_digest: str,
        pointers: ActivePointers,
        prepare: Callable[[StoredAdapter], Awaitable[C]],
        host_bytes: int,
        discard: Callable[[HostAdapter[C]], None] = lambda _adapter: None,
    ) -> None:
        """Takes where adapters come from and what the engine makes of them.

        Args:
            store: Holds them.
            base_digest: Of the base model; adapters of another one are refused.
            pointers: Which version is whose active one.
            prepare: Makes what the engine needs of a checked file; raises `AdapterCorrupt` or `AdapterIncompatible`.
            host_bytes: Weights that may stay.
            discard: Is given what has left, once nobody uses it.
        """
        self.pointers = pointers
        self.host = HostTier(self._fetch, limit_bytes=host_bytes, discard=discard)
        self._store = store
        self._base_digest = base_digest
        self._prepare = prepare

    @asynccontextmanager
    async def choose(self, generation: Generation) -> AsyncIterator[AdapterChoice[C]]:
        """Holds the adapter that answers. A broken adapter is an error under every policy, as it is there to be used.

        Raises:
            StudentModelNotFound, ModelVersionNotFound, AdapterStoreUnavailable: It is required and can't be had.
            AdapterCorrupt, AdapterIncompatible: It fails its checks, or was trained on another base model.
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
    async def lease(self, student_id: str, version: int | None = None) -> AsyncIterator[HostAdapter[C]]:
        """Holds a student's adapter in memory: the active one, or a version.

        While the store does not answer, an adapter that is in memory and was the active one when last heard still is.

        Args:
            student_id: The student.
            version: A version in place of the active one.

        Raises:
            StudentModelNotFound, ModelVersionNotFound: There is none.
            AdapterStoreUnavailable: The store does not answer, and it is not in memory.
            AdapterCorrupt, AdapterIncompatible: It fails its checks, or was trained on another base model.
        """
        async with AsyncExitStack() as stack:
            if version is not None:
                ref = self._store.ref(student_id, version)
                yield await stack.enter_async_context(self.host.lease(ref))
            else:
                yield await self._lease_active(stack, student_id)

    async def _of_student(self, stack: AsyncExitStack, generation: Generation, student_id: str) -> AdapterChoice[C]:
        required = generation.policy is AdapterPolicy.REQUIRE or generation.version is not None
        try:
            return AdapterChoice(adapter=await stack.enter_async_context(self.lease(student_id, generation.version)))
        except StudentModelNotFound:
            if required:
                raise
            return AdapterChoice(fallback=Fallback.NO_STUDENT_MODEL)
        except AdapterStoreUnavailable:
            if required:
                raise
            return AdapterChoice(fallback=Fallback.ADAPTER_STORE_UNAVAILABLE)

    async def _lease_active(self, stack: AsyncExitStack, student_id: str) -> HostAdapter[C]:
        active = await self._active(student_id)
        try:
            return await stack.enter_async_context(self.host.lease(active.ref, sha256=active.sha256))
        except (ModelVersionNotFound, AdapterCorrupt):
            # What the remembered pointer names may have been deleted, or deleted and made anew, a moment ago.
            fresh = await self.pointers.resolve(student_id, anew=True)
            if fresh == active:
                raise
        if fresh is None:
            raise StudentModelNotFound(student_id=student_id)
        return await stack.enter_async_context(self.host.lease(fresh.ref, sha256=fresh.sha256))

    async def _active(self, student_id: str) -> ActiveAdapter:
        try:
            active = await self.pointers.resolve(student_id)
        except AdapterStoreUnavailable:
            active = self.pointers.last_known(student_id)
            if active is None or not self.host.holds(active.ref, sha256=active.sha256):
                raise
        if active is None:
            raise StudentModelNotFound(student_id=student_id)
        return active

    async def _fetch(self, ref: AdapterRef, sha256: str | None) -> HostAdapter[C]:
        started = time.monotonic()
        stored = await self._store.fetch(ref, sha256=sha256)
        with adapter_errors_name(ref.student_id, ref.version):
            trained_on = stored.manifest.recipe.base_digest
            if trained_on != self._base_digest:
                raise AdapterIncompatible(f"{ref} was trained on another base model, with the digest {trained_on}")
            adapter = HostAdapter(manifest=stored.manifest, content=await self._prepare(stored))
        self.host.counts.load_seconds += time.monotonic() - started
        return adapter
