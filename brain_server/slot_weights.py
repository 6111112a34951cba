"""Adapters on the device: tables with room for a fixed number, and what a step adds with them.

The rows of a step find their adapter by the number of its slot, so that an adapter comes and goes by a copy into its
place in the tables and nothing is built or renamed. A lower rank than the table's is filled up with zeros, which add
nothing. The update of many rows with as many adapters is one gathered product for each factor (as in Chen et al.,
"Punica: Multi-Tenant LoRA Serving", 2023): work and reads grow with the rows that have an adapter.

For the torch thread. Knows nothing of students, versions or leases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from brain_server.decoder import Segment
from mesh.errors import AdapterIncompatible
from mesh.lm.architecture import GROUPS, Shape
from mesh.lm.lora import LoraSpec

_PREFIX = "base_model.model.model.layers"
_PARENTS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}


@dataclass(frozen=True, slots=True)
class SlotWeights:
    """An adapter as the tables take it: the factors of all layers, with the adapter's scaling in the second.

    Attributes:
        down: By group, [layers, in, width] each, where the width is the table's rank times the modules of the group
            that can have an adapter.
        up: By module, [layers, rank, out] each.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Target:
    """A module that can have an adapter: its columns in its group's narrow side, and in the group's outputs."""

    module: str
    ranks: slice
    outputs: slice


class SlotTables:
    """The factors of as many adapters as there are slots."""

    def __init__(self, shape: Shape, *, spec: LoraSpec, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocates the tables.

        Args:
            shape: Of the decoder.
            spec: The highest rank and all target modules that an adapter may have.
            slots: Adapters at the same time.
            dtype: Of the decoder; factors of another would cost two conversions a token in every module.
            device: Of the decoder.

        Raises:
            AdapterIncompatible: The decoder has no such modules.
        """
        unknown = set(spec.target_modules).difference(*GROUPS.values())
        if unknown:
            raise AdapterIncompatible(f"the base model has no {', '.join(sorted(unknown))}")
        self._shape = shape
        self._spec = spec
        self._dtype = dtype
        self.device = device
        found = {group: _targets(shape, group, spec=spec) for group in GROUPS}
        self._targets = {group: targets for group, targets in found.items() if targets}
        blank = self._blank()
        self._down = {name: _table(one, slots, device) for name, one in blank.down.items()}
        self._up = {name: _table(one, slots, device) for name, one in blank.up.items()}
        # Views of the tables, made once: a step asks for those of every layer.
        self._views = {
            group: [
                (self._down[group][layer], [(one, self._up[one.module][layer]) for one in targets])
                for layer in range(shape.layers)
            ]
            for group, targets in self._targets.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, whatever is in them."""
        return sum(table.nbytes for table in (*self._down.values(), *self._up.values()))

    def pack(self, state: Mapping[str, Tensor], *, scaling: float) -> SlotWeights:
        """Makes of an adapter what a slot takes. For any thread.

        Args:
            state: Factors by PEFT's names, `….lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank].
            scaling: What their product is multiplied by.

        Raises:
            AdapterIncompatible: Other modules, other widths, a higher rank, or numbers beyond the decoder's precision.
        """
        packed = self._blank()
        left = dict(state)
        for group, targets in self._targets.items():
            for target in targets:
                self._pack_module(packed, left, group=group, target=target, scaling=scaling)
        if left:
            raise AdapterIncompatible(f"the slots have no room for the adapter's {min(left)}")
        if not all(torch.isfinite(one).all() for one in (*packed.down.values(), *packed.up.values())):
            raise AdapterIncompatible(f"the adapter's numbers are too large for {self._dtype}")
        return packed

    @torch.inference_mode()
    def put(self, slot: int, weights: SlotWeights) -> None:
        """Copies an adapter into a slot."""
        for tables, factors in ((self._down, weights.down), (self._up, weights.up)):
            for name, factor in factors.items():
                tables[name][:, slot].copy_(factor, non_blocking=True)

    @torch.inference_mode()
    def wipe(self, slot: int) -> None:
        """Clears a slot."""
        for table in (*self._down.values(), *self._up.values()):
            table[:, slot] = 0

    def step(
        self, slots_of_lane: Sequence[int | None], segments: Sequence[tuple[Segment, int | None]]
    ) -> "SlotStep | None":
        """What adapters add in one step; None if no row has one.

        Args:
            slots_of_lane: The slot of each row of the lane, None for the base model.
            segments: The segments with their slots.
        """
        if all(slot is None for slot in (*slots_of_lane, *(slot for _, slot in segments))):
            return None
        return SlotStep(self, slots_of_lane=slots_of_lane, segments=segments)

    def of_layer(self, layer: int, group: str) -> "tuple[Tensor, Sequence[tuple[_Target, Tensor]]] | None":
        """The tables of one layer's group: [slots, in, width], and [slots, rank, out] for each of its targets."""
        views = self._views.get(group)
        return None if views is None else views[layer]

    def _blank(self) -> SlotWeights:
        layers, rank, shape = self._shape.layers, self._spec.rank, self._shape

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(layers, *sizes, dtype=self._dtype)

        return SlotWeights(
            down={
                group: zeros(shape.widths(GROUPS[group][0])[0], rank * len(targets))
                for group, targets in self._targets.items()
            },
            up={
                target.module: zeros(rank, shape.widths(target.module)[1])
                for targets in self._targets.values()
                for target in targets
            },
        )

    def _pack_module(
        self, packed: SlotWeights, left: dict[str, Tensor], *, group: str, target: _Target, scaling: float
    ) -> None:
        """Puts one module's factors of all layers in their place, and takes them from what is left."""
        module = target.module
        inputs, outputs = self._shape.widths(module)
        parent = f"{_PARENTS.get(module, 'mlp')}.{module}"
        down_LRI = self._take(left, f"{parent}.lora_A.weight", rank_axis=0, width=inputs)
        up_LOR = self._take(left, f"{parent}.lora_B.weight", rank_axis=1, width=outputs)
        if down_LRI is None and up_LOR is None:
            return
        if down_LRI is None or up_LOR is None or down_LRI.shape[1] != up_LOR.shape[2]:
            raise AdapterIncompatible(f"the adapter's two factors of {module} do not belong together")
        rank = down_LRI.shape[1]
        packed.down[group][:, :, target.ranks][:, :, :rank] = down_LRI.transpose(1, 2)
        packed.up[module][:, :rank] = (up_LOR * scaling).transpose(1, 2)

    def _take(self, left: dict[str, Tensor], factor: str, *, rank_axis: int, width: int) -> Tensor | None:
        """One factor of all layers, or None if no layer has it."""
        names = [f"{_PREFIX}.{layer}.{factor}" for layer in range(self._shape.layers)]
        found = [left.pop(name, None) for name in names]
        if all(one is None for one in found):
            return None
        shapes = {None if one is None else tuple(one.shape) for one in found}
        (shape, *others) = shapes
        fits = shape is not None and len(shape) == 2 and shape[1 - rank_axis] == width
        if others or shape is None or not fits or shape[rank_axis] > self._spec.rank:
            raise AdapterIncompatible(
                f"the adapter's {factor} does not fit: it is {sorted(map(str, shapes))} in the layers, where rank "
                f"{self._spec.rank} and width {width} do"
            )
        return torch.stack([one for one in found if one is not None])


class SlotStep:
    """What the adapters of one step add to its maps."""

    def __init__(
        self,
        tables: SlotTables,
        *,
        slots_of_lane: Sequence[int | None],
        segments: Sequence[tuple[Segment, int | None]],
    ) -> None:
        self._tables = tables
        device = tables.device
        rows = [row for row, slot in enumerate(slots_of_lane) if slot is not None]
        lane = len(slots_of_lane)
        # Without rows of the base model in between, the lane is a view.
        self._rows: Tensor | slice = slice(0, lane) if len(rows) == lane else torch.tensor(rows, device=device)
        slots_B = torch.tensor([slot for slot in slots_of_lane if slot is not None], device=device)
        self._gathered = (Bags if device.type == "cpu" else Products)(slots_B) if rows else None
        self._segments = []
        at = lane
        for segment, slot in segments:
            if slot is not None:
                self._segments.append((slice(at, at + len(segment.tokens)), slot))
            at += len(segment.tokens)

    def add(self, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
        """See `brain_server.decoder.Adapters`."""
        tables = self._tables.of_layer(layer, group)
        if tables is None:
            return
        down_SIW, ups = tables
        if self._gathered is not None:
            narrow_BW = self._gathered(x_NI[self._rows], down_SIW)
            for target, up_SRO in ups:
                update_BO = self._gathered(narrow_BW[:, target.ranks].contiguous(), up_SRO)
                if isinstance(self._rows, slice):
                    out_NO[self._rows, target.outputs].add_(update_BO)
                else:
                    out_NO[:, target.outputs].index_add_(0, self._rows, update_BO)
        for place, slot in self._segments:
            narrow_TW = x_NI[place] @ down_SIW[slot]
            for target, up_SRO in ups:
                out_NO[place, target.outputs].addmm_(narrow_TW[:, target.ranks], up_SRO[slot])


class Gathered(Protocol):
    """The product of each row with the matrix of its own slot."""

    def __call__(self, x_BI: Tensor, table_SIO: Tensor) -> Tensor:
        """Returns [B, O] for contiguous rows [B, I] and a table [slots, I, O]."""
        ...


class Bags:
    """Reads each row's matrix where it is, in place of copying it for the row.

    A row's product is a bag of its matrix's rows, weighed by the row's numbers.
    """

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B = slots_B
        self._bags: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x_BI: Tensor, table_SIO: Tensor) -> Tensor:
        """See `Gathered`."""
        width = table_SIO.shape[1]
        if width not in self._bags:
            first_B, device = self._slots_B * width, x_BI.device
            places_BI = first_B[:, None] + torch.arange(width, device=device)
            self._bags[width] = places_BI.flatten(), torch.arange(len(first_B), device=device) * width
        places, begins = self._bags[width]
        # Not torch.nn.functional's, which makes the bags' beginnings anew in every call.
        bags: Tensor = torch.embedding_bag(
            table_SIO.flatten(0, 1), places, begins, mode=0, per_sample_weights=x_BI.flatten()
        )[0]
        return bags


class Products:
    """Copies each row's matrix for one batched product, for GPUs: they copy well."""

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B = slots_B

    def __call__(self, x_BI: Tensor, table_SIO: Tensor) -> Tensor:
        """See `Gathered`."""
        return torch.bmm(x_BI.unsqueeze(1), table_SIO[self._slots_B]).squeeze(1)


def _targets(shape: Shape, group: str, *, spec: LoraSpec) -> list[_Target]:
    found: list[_Target] = []
    first_output = 0
    for module in GROUPS[group]:
        outputs = slice(first_output, first_output + shape.widths(module)[1])
        first_output = outputs.stop
        if module in spec.target_modules:
            ranks = slice(len(found) * spec.rank, (len(found) + 1) * spec.rank)
            found.append(_Target(module, ranks, outputs))
    return found


def _table(factor: Tensor, slots: int, device: torch.device) -> Tensor:
    layers, *widths = factor.shape
    return torch.zeros(layers, slots, *widths, dtype=factor.dtype, device=device)
