"""The slot: the one place on the model for a student's adapter, and the switch between it and the base model.

Belongs on the torch thread, but for `residency` and `evict`. Knows nothing of stores, pointers or queues.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import torch

from brain_server.engine import LoadedAdapter, Residency, Tier
from brain_server.residency import HostAdapter, TierCounts
from mesh.lm.base import BaseModel
from mesh.lm.lora import LoraSpec, adapter_state, attach, load_into, switched_off


class Slot:
    """The base model with room for one adapter.

    Raises:
        AdapterIncompatible: The base model lacks the target modules.
    """

    def __init__(self, base: BaseModel, *, spec: LoraSpec) -> None:
        self.counts = TierCounts()
        self._model = attach(base.model, spec, seed=0).eval().requires_grad_(requires_grad=False)
        # Training keeps the factors in fp32. Served in another precision than the base model's, every one of them would
        # cost two casts a token; on a CPU in bf16 that is a third of the speed.
        for name, parameter in self._model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.to(base.dtype)
        self._blank = {name: torch.zeros_like(factor) for name, factor in adapter_state(self._model).items()}
        self._held: HostAdapter | None = None
        self._last_used = datetime.now(UTC)
        self._evicted: set[str] = set()

    def residency(self) -> Residency | None:
        """The adapter whose weights are on the model, without its leases; one that was evicted is left out."""
        held = self._held
        if held is None or held.manifest.ref.student_id in self._evicted:
            return None
        size_bytes = held.manifest.size_bytes
        return Residency(adapter=held.identity, tier=Tier.SLOT, bytes=size_bytes, leases=0, last_used=self._last_used)

    @contextmanager
    def using(self, adapter: HostAdapter | None) -> Iterator[None]:
        """Within it the model decodes with the adapter; with None it is the base model, bit for bit.

        Raises:
            AdapterIncompatible: It does not fit the slot.
        """
        self.sweep()
        try:
            if adapter is None:
                with switched_off(self._model):
                    yield
            else:
                self._put(adapter)
                yield
        finally:
            self.sweep()

    def evict(self, student_id: str) -> LoadedAdapter | None:
        """Marks a student's adapter to leave at the next `sweep`; tells which it is, if it is here. For any thread."""
        held = self._held
        # Also if it is not here: it may be on its way in.
        self._evicted.add(student_id)
        return held.identity if held is not None and held.manifest.ref.student_id == student_id else None

    def sweep(self) -> None:
        """Wipes the weights of an adapter that was evicted."""
        # Swapped, not cleared: what is marked from now on is for the next sweep.
        evicted, self._evicted = self._evicted, set()
        if self._held is not None and self._held.manifest.ref.student_id in evicted:
            self._held = None
            load_into(self._model, self._blank, scaling=0.0)

    def _put(self, adapter: HostAdapter) -> None:
        self._last_used = datetime.now(UTC)
        if self._held is not None and self._held.identity == adapter.identity:
            self.counts.hits += 1
            return
        self.counts.misses += 1
        self.counts.evictions += self._held is not None
        self._held = None
        load_into(self._model, adapter.state, scaling=adapter.manifest.recipe.scaling)
        self._held = adapter
