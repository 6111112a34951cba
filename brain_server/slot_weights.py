"""Adapters on the device: tables with room for a fixed number, and what a step adds with them.

The rows of a step find their adapter by the number of its slot, so that an adapter comes and goes by a copy into its
place in the tables and nothing is built or renamed. A lower rank than the table's is filled up with zeros, which add
nothing. The update of many rows with as many adapters is one gathered product for each factor (as in Chen et al.,
"Punica: Multi-Tenant LoRA Serving", 2023): work and reads grow with the rows that have an adapter.

For the torch thread. Knows nothing of students, versions or leases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brain_server.architecture import GROUPS, Shape
from brain_server.decoder import Segment
from mesh.errors import AdapterIncompatible
from mesh.lm.lora import LoraSpec

_PREFIX = "base_model.model.model.layers"
_PARENTS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}


@dataclass(frozen=True, slots=True)
class SlotWeights:
    """An adapter as the tables take it, by group: the factors of all layers, with the adapter's scaling in the second.

    Attributes:
        down: [layers, in, width] each, where the width is the table's rank times the modules of the group that can
            have an adapter.
        up: [layers, width, out] each.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]


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
        self._targets = {
            group: found
            for group, modules in GROUPS.items()
            if (found := [module for module in modules if module in spec.target_modules])
        }
        blank = self._blank()
        self._down = {g: t.new_zeros(t.shape[0], slots, *t.shape[1:], device=device) for g, t in blank.down.items()}
        self._up = {g: t.new_zeros(t.shape[0], slots, *t.shape[1:], device=device) for g, t in blank.up.items()}

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
            for index in range(len(targets)):
                self._pack_module(packed, left, group=group, index=index, scaling=scaling)
        if left:
            raise AdapterIncompatible(f"the slots have no room for the adapter's {min(left)}")
        if not all(torch.isfinite(one).all() for one in (*packed.down.values(), *packed.up.values())):
            raise AdapterIncompatible(f"the adapter's numbers are too large for {self._dtype}")
        return packed

    @torch.inference_mode()
    def put(self, slot: int, weights: SlotWeights) -> None:
        """Copies an adapter into a slot."""
        for group, down in weights.down.items():
            self._down[group][:, slot].copy_(down, non_blocking=True)
            self._up[group][:, slot].copy_(weights.up[group], non_blocking=True)

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
        return SlotStep(self._down, self._up, slots_of_lane=slots_of_lane, segments=segments)

    def _blank(self) -> SlotWeights:
        shape, rank = self._shape, self._spec.rank
        down, up = {}, {}
        for group, targets in self._targets.items():
            inputs = shape.widths(GROUPS[group][0])[0]
            outputs = sum(shape.widths(module)[1] for module in GROUPS[group])
            width = rank * len(targets)
            down[group] = torch.zeros(shape.layers, inputs, width, dtype=self._dtype)
            up[group] = torch.zeros(shape.layers, width, outputs, dtype=self._dtype)
        return SlotWeights(down=down, up=up)

    def _pack_module(
        self, packed: SlotWeights, left: dict[str, Tensor], *, group: str, index: int, scaling: float
    ) -> None:
        """Puts one module's factors of all layers in their place, and takes them from what is left."""
        module = self._targets[group][index]
        inputs, outputs = self._shape.widths(module)
        parent = f"{_PARENTS.get(module, 'mlp')}.{module}"
        down_LRI = self._take(left, f"{parent}.lora_A.weight", rank_axis=0, width=inputs)
        up_LOR = self._take(left, f"{parent}.lora_B.weight", rank_axis=1, width=outputs)
        if down_LRI is None and up_LOR is None:
            return
        if down_LRI is None or up_LOR is None or down_LRI.shape[1] != up_LOR.shape[2]:
            raise AdapterIncompatible(f"the adapter's two factors of {module} do not belong together")
        ranks = slice(index * self._spec.rank, index * self._spec.rank + down_LRI.shape[1])
        first_output = sum(self._shape.widths(one)[1] for one in GROUPS[group][: GROUPS[group].index(module)])
        packed.down[group][:, :, ranks] = down_LRI.transpose(1, 2)
        packed.up[group][:, ranks, first_output : first_output + outputs] = (up_LOR * scaling).transpose(1, 2)

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
        down: Mapping[str, Tensor],
        up: Mapping[str, Tensor],
        *,
        slots_of_lane: Sequence[int | None],
        segments: Sequence[tuple[Segment, int | None]],
    ) -> None:
        self._down = down
        self._up = up
        rows = [row for row, slot in enumerate(slots_of_lane) if slot is not None]
        lane = len(slots_of_lane)
        device = next(iter(down.values())).device
        self._slots_B = torch.tensor([slot for slot in slots_of_lane if slot is not None], device=device)
        # Without rows of the base model in between, the lane is a view.
        self._rows: Tensor | slice = slice(0, lane) if len(rows) == lane else torch.tensor(rows, device=device)
        self._segments = []
        at = lane
        for segment, slot in segments:
            if slot is not None:
                self._segments.append((slice(at, at + len(segment.tokens)), slot))
            at += len(segment.tokens)
        self._gathered = Bags(self._slots_B) if device.type == "cpu" else Products(self._slots_B)

    def add(self, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
        """See `brain_server.decoder.Adapters`."""
        if group not in self._down:
            return
        down_SIW, up_SWO = self._down[group][layer], self._up[group][layer]
        if len(self._slots_B):
            update_BO = self._gathered(self._gathered(x_NI[self._rows], down_SIW), up_SWO)
            if isinstance(self._rows, slice):
                out_NO[self._rows] += update_BO
            else:
                out_NO.index_add_(0, self._rows, update_BO)
        for place, slot in self._segments:
            out_NO[place].addmm_(x_NI[place] @ down_SIW[slot], up_SWO[slot])


class Bags:
    """Multiplies each row with the matrix of its own slot, in place of copying that matrix for every row.

    A row's product is a bag of its matrix's rows, weighed by the row's numbers; a CPU reads them where they are.
    """

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B1 = slots_B[:, None]
        self._bags: dict[int, Tensor] = {}

    def __call__(self, x_BI: Tensor, table_SIO: Tensor) -> Tensor:
        """Returns [B, O] for rows [B, I] and a table [slots, I, O]."""
        width = table_SIO.shape[1]
        if width not in self._bags:
            self._bags[width] = self._slots_B1 * width + torch.arange(width, device=x_BI.device)
        return F.embedding_bag(self._bags[width], table_SIO.flatten(0, 1), per_sample_weights=x_BI, mode="sum")


class Products:
    """Multiplies each row with the matrix of its own slot as one batched product, for GPUs: they copy well."""

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B = slots_B

    def __call__(self, x_BI: Tensor, table_SIO: Tensor) -> Tensor:
        """Returns [B, O] for rows [B, I] and a table [slots, I, O]."""
        return torch.bmm(x_BI.unsqueeze(1), table_SIO[self._slots_B]).squeeze(1)
