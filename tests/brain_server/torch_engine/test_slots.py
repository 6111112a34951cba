"""Which adapter has which slot, against a model of slots that hold what was copied into them and nothing else."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from brain_server.adapters.host_tier import HostAdapter
from brain_server.engine.contract import LoadedAdapter, TierCounts
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.slots import SlotLease, Slots
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef
from testing.models.random_adapters import recipe

RECIPE = recipe(base_digest="0" * 64)
NO_WEIGHTS = SlotWeights(down={}, up={})


def adapter_of(student_id: str, *, version: int = 1, content: str = "") -> HostAdapter[SlotWeights]:
    """An adapter. Different content gives a different sha256 and size."""
    ref = AdapterRef(student_id=student_id, version=version)
    return HostAdapter(
        manifest=Manifest.of(f"{student_id}-{content}".encode(), ref=ref, recipe=RECIPE), content=NO_WEIGHTS
    )


ADAPTERS = [
    adapter_of(student_id, version=version, content=content)
    for student_id in ("ada", "ben", "eve")
    for version, content in ((1, ""), (2, "longer"), (2, "the same version with other bytes"))
]


class SlotsMachine(RuleBasedStateMachine):
    """Leases, releases and evictions in any order, with at most as many leases as slots, as there are rows."""

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        self.count = count
        self.slots = Slots(count)
        # The adapter in each slot; None is a clear slot.
        self.content: list[LoadedAdapter | None] = [None] * count
        self.leases: list[SlotLease] = []
        # What a new lease can share, least recently used first. Other leases are of adapters that were evicted in use.
        self.resident: dict[LoadedAdapter, SlotLease] = {}
        self.counts = TierCounts()

    @rule(adapter=st.sampled_from(ADAPTERS))
    def lease(self, adapter: HostAdapter[SlotWeights]) -> None:
        if len(self.leases) == self.count:
            return
        shared_lease = self.resident.pop(adapter.identity, None)
        lease = self.slots.lease(adapter)
        if shared_lease is not None:
            assert lease is shared_lease
            self.counts.hits += 1
        else:
            assert lease.slot not in {held_lease.slot for held_lease in self.leases}, "the slot is in use"
            self.counts.misses += 1
            if len({held_lease.slot for held_lease in (*self.leases, *self.resident.values())}) == self.count:
                # The least recently used adapter without leases makes room, and only when no slot is free.
                leaving_adapter = next(
                    identity for identity, resident_lease in self.resident.items() if resident_lease not in self.leases
                )
                assert self.resident.pop(leaving_adapter).slot == lease.slot
                self.counts.evictions += 1
        self.resident[adapter.identity] = lease
        self.leases.append(lease)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.leases:
            self.slots.release(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @rule(student_id=st.sampled_from(["ada", "ben", "eve"]))
    def evict(self, student_id: str) -> None:
        students_adapters = [identity for identity in self.resident if identity.ref.student_id == student_id]
        assert sorted(self.slots.evict(student_id), key=repr) == sorted(students_adapters, key=repr)
        for identity in students_adapters:
            del self.resident[identity]

    @rule()
    def clear_while_there_is_no_lease(self) -> None:
        if self.leases:
            return
        # What a step that failed halfway may have left.
        self.content = [ADAPTERS[0].identity] * self.count
        self.resident.clear()
        self.slots.clear()
        self._apply_upkeep()
        assert self.content == [None] * self.count

    @rule()
    def step(self) -> None:
        """Applies the upkeep; then every slot holds its lease's adapter, and the others are clear."""
        self._apply_upkeep()
        adapter_by_slot = {lease.slot: lease.adapter.identity for lease in (*self.leases, *self.resident.values())}
        assert self.content == [adapter_by_slot.get(slot) for slot in range(self.count)]

    @invariant()
    def residencies_and_counts_are_right(self) -> None:
        lease_counts = [(residency.adapter, residency.leases) for residency in reversed(self.slots.residencies())]
        assert lease_counts == [(identity, self.leases.count(lease)) for identity, lease in self.resident.items()]
        bytes_by_slot = {
            lease.slot: lease.adapter.manifest.size_bytes for lease in (*self.leases, *self.resident.values())
        }
        assert self.slots.counts == replace(self.counts, bytes=sum(bytes_by_slot.values()))

    def _apply_upkeep(self) -> None:
        loads, wipes = self.slots.take_upkeep()
        for slot in wipes:
            self.content[slot] = None
        for slot, adapter in loads.items():
            self.content[slot] = adapter.identity
        assert self.slots.take_upkeep() == ({}, set())


SlotsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestSlots = SlotsMachine.TestCase
