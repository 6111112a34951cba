"""Which adapter has which slot, against slots that hold nothing but what was copied into them."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from brain_server.adapters.host_tier import HostAdapter
from brain_server.engine.contract import LoadedAdapter, TierCounts
from brain_server.torch_engine.compute.slot_tables import SlotWeights
from brain_server.torch_engine.slots import Lease, Slots
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef
from testing.models.random_adapters import recipe

RECIPE = recipe(base_digest="0" * 64)
NO_WEIGHTS = SlotWeights(down={}, up={})


def adapter_of(student_id: str, *, version: int = 1, content: str = "") -> HostAdapter[SlotWeights]:
    """An adapter; what differs in content differs in sha256 and in size."""
    ref = AdapterRef(student_id=student_id, version=version)
    return HostAdapter(
        manifest=Manifest.of(f"{student_id}-{content}".encode(), ref=ref, recipe=RECIPE), content=NO_WEIGHTS
    )


ADAPTERS = [
    adapter_of(student_id, version=version, content=content)
    for student_id in ("ada", "ben", "eve")
    for version, content in ((1, ""), (2, "longer"), (2, "the same version made anew"))
]


class SlotsMachine(RuleBasedStateMachine):
    """Leases, releases and evictions in any order, with never more leases than slots, as rows are no more."""

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        self.count = count
        self.slots = Slots(count)
        # What is in the slots: None is clear.
        self.content: list[LoadedAdapter | None] = [None] * count
        self.leases: list[Lease] = []
        # What a new lease meets, least recently used first; leases beside these are of what was evicted in use.
        self.resident: dict[LoadedAdapter, Lease] = {}
        self.counts = TierCounts()

    @rule(adapter=st.sampled_from(ADAPTERS))
    def lease(self, adapter: HostAdapter[SlotWeights]) -> None:
        if len(self.leases) == self.count:
            return
        known = self.resident.pop(adapter.identity, None)
        lease = self.slots.lease(adapter)
        if known is not None:
            assert lease is known
            self.counts.hits += 1
        else:
            assert lease.slot not in {one.slot for one in self.leases}, "the slot is in use"
            self.counts.misses += 1
            if len({one.slot for one in (*self.leases, *self.resident.values())}) == self.count:
                # The least recently used of those that nobody uses makes room, and nothing does while there is some.
                leaving = next(identity for identity, one in self.resident.items() if one not in self.leases)
                assert self.resident.pop(leaving).slot == lease.slot
                self.counts.evictions += 1
        self.resident[adapter.identity] = lease
        self.leases.append(lease)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.leases:
            self.slots.release(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @rule(student_id=st.sampled_from(["ada", "ben", "eve"]))
    def evict(self, student_id: str) -> None:
        theirs = [identity for identity in self.resident if identity.ref.student_id == student_id]
        assert sorted(self.slots.evict(student_id), key=repr) == sorted(theirs, key=repr)
        for identity in theirs:
            del self.resident[identity]

    @rule()
    def clear_when_nobody_is_there(self) -> None:
        if self.leases:
            return
        # What a step that failed half-way may have left.
        self.content = [ADAPTERS[0].identity] * self.count
        self.resident.clear()
        self.slots.clear()
        self._keep_up()
        assert self.content == [None] * self.count

    @rule()
    def step(self) -> None:
        """The upkeep; then every slot holds what it is said to, and those that are said to be clear are."""
        self._keep_up()
        expected = {one.slot: one.adapter.identity for one in (*self.leases, *self.resident.values())}
        assert self.content == [expected.get(slot) for slot in range(self.count)]

    @invariant()
    def what_is_told_is_what_is_there(self) -> None:
        told = [(one.adapter, one.leases) for one in reversed(self.slots.residencies())]
        assert told == [(identity, self.leases.count(lease)) for identity, lease in self.resident.items()]
        held = {one.slot: one.adapter.manifest.size_bytes for one in (*self.leases, *self.resident.values())}
        assert self.slots.counts == replace(self.counts, bytes=sum(held.values()))

    def _keep_up(self) -> None:
        loads, wipes = self.slots.take_upkeep()
        for slot in wipes:
            self.content[slot] = None
        for slot, adapter in loads.items():
            self.content[slot] = adapter.identity
        assert self.slots.take_upkeep() == ({}, set())


SlotsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestSlots = SlotsMachine.TestCase
