"""Which adapter has which slot: leased by the replies that decode with it, least recently used first out.

Slots are known by the identity of what is in them, version and sha256, never by a name. There are at least as many as
rows in a batch, so that a reply that has a row always gets a slot: none waits for an adapter to leave. Pure
bookkeeping, for the event loop; what has to be copied or wiped is handed out for the torch thread.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from brain_server.adapters.host_tier import HostAdapter
from brain_server.engine.contract import LoadedAdapter, Residency, Tier, TierCounts
from brain_server.torch_engine.compute.slot_tables import SlotWeights


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """One adapter in its slot.

    Attributes:
        slot: Its number.
        adapter: What is, or will be after the next step's upkeep, in the slot.
        leases: Replies that decode with it.
        last_used: By a reply.
    """

    slot: int
    adapter: HostAdapter[SlotWeights]
    leases: int = 0
    last_used: datetime = field(default_factory=lambda: datetime.now(UTC))


class Slots:
    """A fixed number of slots."""

    def __init__(self, count: int) -> None:
        self.counts = TierCounts()
        self._count = count
        self._free = list(reversed(range(count)))
        self._held: OrderedDict[LoadedAdapter, Lease] = OrderedDict()
        self._loads: dict[int, HostAdapter[SlotWeights]] = {}
        self._wipes: set[int] = set()

    def lease(self, adapter: HostAdapter[SlotWeights]) -> Lease:
        """Holds a slot with the adapter until `release`. There must be a slot that nobody leases."""
        lease = self._held.get(adapter.identity)
        if lease is None:
            self.counts.misses += 1
            lease = self._held[adapter.identity] = Lease(slot=self._vacant(), adapter=adapter)
            self._loads[lease.slot] = adapter
            self._wipes.discard(lease.slot)
            self.counts.bytes += adapter.manifest.size_bytes
        else:
            self.counts.hits += 1
            self._held.move_to_end(adapter.identity)
        lease.leases += 1
        lease.last_used = datetime.now(UTC)
        return lease

    def release(self, lease: Lease) -> None:
        """Ends one reply's hold. What was evicted meanwhile leaves with the last."""
        lease.leases -= 1
        if lease.leases == 0 and self._held.get(lease.adapter.identity) is not lease:
            self._vacate(lease)

    def evict(self, student_id: str) -> list[LoadedAdapter]:
        """Drops a student's adapters: no later lease meets them."""
        dropped = [identity for identity in self._held if identity.ref.student_id == student_id]
        for identity in dropped:
            lease = self._held.pop(identity)
            if lease.leases == 0:
                self._vacate(lease)
        return dropped

    def clear(self) -> None:
        """Drops everything, as nobody knows what is in the slots. No lease may be left."""
        self._held.clear()
        self._loads.clear()
        self._free = list(reversed(range(self._count)))
        self._wipes = set(range(self._count))
        self.counts.bytes = 0

    def residencies(self) -> list[Residency]:
        """What is in the slots, most recently used first."""
        return [
            Residency(
                adapter=identity,
                tier=Tier.SLOT,
                bytes=lease.adapter.manifest.size_bytes,
                leases=lease.leases,
                last_used=lease.last_used,
            )
            for identity, lease in reversed(self._held.items())
        ]

    def take_upkeep(self) -> tuple[dict[int, HostAdapter[SlotWeights]], set[int]]:
        """What to copy into which slot, and which slots to wipe, before the next step."""
        loads, self._loads = self._loads, {}
        wipes, self._wipes = self._wipes, set()
        return loads, wipes

    def _vacant(self) -> int:
        if self._free:
            return self._free.pop()
        identity = next(identity for identity, lease in self._held.items() if lease.leases == 0)
        self.counts.evictions += 1
        lease = self._held.pop(identity)
        self.counts.bytes -= lease.adapter.manifest.size_bytes
        return lease.slot

    def _vacate(self, lease: Lease) -> None:
        self.counts.bytes -= lease.adapter.manifest.size_bytes
        self._loads.pop(lease.slot, None)
        self._wipes.add(lease.slot)
        self._free.append(lease.slot)
