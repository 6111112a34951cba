"""CloningService: parse, call, convert."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceServicer

from cloning_server.clone import Clone, CloneState
from cloning_server.clones.cancellation import cancel
from cloning_server.clones.feed import Feed
from cloning_server.clones.joint_feed import JointFeed
from cloning_server.clones.registry import Registry
from cloning_server.edge import order_wire, wire
from cloning_server.edge.baseline_rules import check_baseline
from cloning_server.edge.health import CloningHealthCheck
from cloning_server.edge.order_wire import CloneOrder
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterCorrupt, AdapterStoreUnavailable
from mesh.rpc.calls import Context
from mesh.rpc.watch_places import WatchPlaces

# How long a caller waits for the adapter store to say which version is active, and how long nobody asks a store that
# does not answer.
_POINTER_SECONDS = 1.0
_POINTER_PAUSE_SECONDS = 10.0


class CloningServicer(CloningServiceServicer):
    """Answers for the registry, the feeds and the adapter store; raises what they raise."""

    def __init__(
        self,
        registry: Registry,
        *,
        feed: Feed,
        joint_feed: JointFeed,
        watch_places: WatchPlaces,
        adapters: AdapterStore,
        health: CloningHealthCheck,
    ) -> None:
        self._registry = registry
        self._feed = feed
        self._joint_feed = joint_feed
        self._watch_places = watch_places
        self._adapters = adapters
        self._health = health
        # When to ask the adapter store again after it did not answer.
        self._ask_adapters_from = 0.0

    async def StartClone(self, request: pb.StartCloneRequest, context: Context) -> pb.StartCloneResponse:
        """Accepts a clone."""
        order = order_wire.order_from(request)
        # First: what the request made is its answer, also once its consent has expired, its base version is gone, or
        # the rules for baselines have changed.
        clone = await self._registry.intake.find_started(
            order.student_id, order.baseline, request_id=order.request_id, terms=order.terms
        )
        return wire.started_from(clone or await self._start(order))

    async def GetClone(self, request: pb.GetCloneRequest, context: Context) -> pb.GetCloneResponse:
        """Returns a clone."""
        (clone,) = await self._registry.listing.with_estimates([await self._registry.changes.find(request.clone_id)])
        return wire.clone_from(clone, active_version=await self._active_version_beside(clone))

    async def WatchClone(
        self, request: pb.WatchCloneRequest, context: Context
    ) -> AsyncGenerator[pb.WatchCloneResponse, None]:
        """Streams a clone's changes."""
        clone_id, after_sequence = request.clone_id, wire.after_sequence_from(request)
        with self._watch_places.place():
            async with aclosing(self._feed.watch(clone_id, after_sequence=after_sequence)) as changes:
                async for change in changes:
                    yield wire.change_from(change, active_version=await self._final_active_version(change.clone))

    async def WatchClones(
        self, request: pb.WatchClonesRequest, context: Context
    ) -> AsyncGenerator[pb.WatchClonesResponse, None]:
        """Streams the changes of several clones."""
        clone_ids, student_ids, after = request.clone_ids, request.student_ids, wire.after_sequence_from(request)
        with self._watch_places.place():
            watch = self._joint_feed.watch(clone_ids=clone_ids, student_ids=student_ids, after=after)
            async with aclosing(watch) as changes:
                async for change in changes:
                    yield wire.joint_change_from(change, active_version=await self._final_active_version(change.clone))

    async def CancelClone(self, request: pb.CancelCloneRequest, context: Context) -> pb.CancelCloneResponse:
        """Cancels a clone."""
        return wire.cancelled_from(
            await cancel(request.clone_id, changes=self._registry.changes, adapters=self._adapters)
        )

    async def ListClones(self, request: pb.ListClonesRequest, context: Context) -> pb.ListClonesResponse:
        """Lists clones."""
        query = wire.query_from(request)
        page = await self._registry.listing.list_clones(student_id=query.student_id, size=query.size, token=query.token)
        return wire.page_from(replace(page, clones=tuple(await self._registry.listing.with_estimates(page.clones))))

    async def GetHealth(self, request: pb.GetHealthRequest, context: Context) -> pb.GetHealthResponse:
        """Reports health."""
        return wire.health_from(await self._health.report())

    async def _start(self, order: CloneOrder) -> Clone:
        check_baseline(order.baseline)
        if order.terms.base_version:
            # Refuses a version that does not exist.
            await self._adapters.read_manifest(order.student_id, order.terms.base_version)
        return await self._registry.intake.start(
            order.student_id, order.baseline, request_id=order.request_id, terms=order.terms
        )

    async def _final_active_version(self, clone: Clone) -> int | None:
        """The active version beside a final clone; None before, when the clone's version can't answer yet."""
        return await self._active_version_beside(clone) if clone.state.is_final else None

    async def _active_version_beside(self, clone: Clone) -> int | None:
        """The active version of the clone's student.

        While the adapter store does not answer, that of a completed clone, which became active just before the clone
        completed.
        """
        if clone.manifest is None:
            return None
        known_version = clone.manifest.ref.version if clone.state is CloneState.COMPLETED else None
        if time.monotonic() < self._ask_adapters_from:
            return known_version
        try:
            async with asyncio.timeout(_POINTER_SECONDS):
                active = await self._adapters.resolve_active(clone.student_id)
        except (AdapterStoreUnavailable, TimeoutError):
            # A watch of a whole class must not wait for each of its students.
            self._ask_adapters_from = time.monotonic() + _POINTER_PAUSE_SECONDS
            return known_version
        except AdapterCorrupt:
            # No version answers by a pointer that can't be read. `ListStudentModels` fails with it.
            return None
        return None if active is None else active.ref.version
