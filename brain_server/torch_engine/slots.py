"""Which adapter has which slot. Replies lease the slot they decode with; the least recently used adapter leaves first.

A slot is looked up by the identity of the adapter in it, version and sha256, never by a name. There are at least as
many slots as rows in the batch, so that a reply with a row always gets a slot and never waits for an adapter to leave.
This is bookkeeping only, for the event loop: what to copy and wipe is returned, for the torch thread to do.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from brain_server.adapters.host_tier import HostAdapter
from brain_server.engine.contract import LoadedAdapter, Residency, Tier, TierCounts
from brain_server.torch_engine.compute.slot_layout import SlotWeights


@dataclass(slots=True, kw_only=True, eq=False)
class SlotLease:
    """One adapter in its slot, shared by the replies that decode with it.

    Attributes:
        slot: Number of the slot.
        adapter: The adapter in the slot, from the next step on.
        lease_count: Number of replies that decode with it.
        last_used: When a reply last leased it.
    """

    slot: int
    adapter: HostAdapter[SlotWeights]
    lease_count: int = 0
    last_used: datetime = field(default_factory=lambda: datetime.now(UTC))


class Slots:
    """A fixed number of slots.

    Attributes:
        counts: Hits, misses, evictions and bytes, for metrics.
    """

    def __init__(self, count: int) -> None:
        self.counts = TierCounts()
        self._count = count
        self._free_slots = list(reversed(range(count)))
        self._resident: OrderedDict[LoadedAdapter, SlotLease] = OrderedDict()
        self._loads: dict[int, HostAdapter[SlotWeights]] = {}
        self._wipes: set[int] = set()

    def lease(self, adapter: HostAdapter[SlotWeights]) -> SlotLease:
        """Leases a slot with the adapter until `release`. There must be a slot without leases."""
        lease = self._resident.get(adapter.identity)
        if lease is None:
            self.counts.misses += 1
            lease = self._resident[adapter.identity] = SlotLease(slot=self._take_free_slot(), adapter=adapter)
            self._loads[lease.slot] = adapter
            self._wipes.discard(lease.slot)
            self.counts.bytes += adapter.manifest.size_bytes
        else:
            self.counts.hits += 1
            self._resident.move_to_end(adapter.identity)
        lease.lease_count += 1
        lease.last_used = datetime.now(UTC)
        return lease

    def release(self, lease: SlotLease) -> None:
        """Ends one reply's lease. An adapter that was evicted meanwhile leaves with its last lease."""
        lease.lease_count -= 1
        if lease.lease_count == 0 and self._resident.get(lease.adapter.identity) is not lease:
            self._free_slot(lease)

    def evict(self, student_id: str) -> list[LoadedAdapter]:
        """Drops a student's adapters, so that no later lease gets them. Returns the dropped adapters."""
        evicted_adapters = [identity for identity in self._resident if identity.ref.student_id == student_id]
        for identity in evicted_adapters:
            self.drop(identity)
        return evicted_adapters

    def drop(self, identity: LoadedAdapter) -> None:
        """Drops one adapter, if it has a slot, so that no later lease gets it."""
        lease = self._resident.pop(identity, None)
        if lease is not None and lease.lease_count == 0:
            self._free_slot(lease)

    def clear(self) -> None:
        """Drops all adapters and wipes all slots, for when their content is unknown. No lease may be left."""
        self._resident.clear()
        self._loads.clear()
        self._free_slots = list(reversed(range(self._count)))
        self._wipes = set(range(self._count))
        self.counts.bytes = 0

    def residencies(self) -> list[Residency]:
        """Returns the adapters in the slots, most recently used first."""
        return [
            Residency(
                adapter=identity,
                tier=Tier.SLOT,
                bytes=lease.adapter.manifest.size_bytes,
                leases=lease.lease_count,
                last_used=lease.last_used,
            )
            for identity, lease in reversed(self._resident.items())
        ]

    def take_upkeep(self) -> tuple[dict[int, HostAdapter[SlotWeights]], set[int]]:
        """Returns the adapters to copy, by slot, and the slots to wipe before the next step, and forgets both."""
        loads, self._loads = self._loads, {}
        wipes, self._wipes = self._wipes, set()
        return loads, wipes

    def _take_free_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        identity = next(identity for identity, lease in self._resident.items() if lease.lease_count == 0)
        self.counts.evictions += 1
        lease = self._resident.pop(identity)
        self.counts.bytes -= lease.adapter.manifest.size_bytes
        return lease.slot

    def _free_slot(self, lease: SlotLease) -> None:
        self.counts.bytes -= lease.adapter.manifest.size_bytes
        self._loads.pop(lease.slot, None)
        self._wipes.add(lease.slot)
        self._free_slots.append(lease.slot)
