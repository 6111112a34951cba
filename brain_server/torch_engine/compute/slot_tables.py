"""Adapters on the device: tables with a fixed number of slots, and what a step adds with them.

The rows of a step look up their adapter by the number of its slot. An adapter comes and goes by a copy into its slot;
no module is built or renamed. The update of many rows with as many adapters is one product per factor, each row with
the matrix of its slot (as in Chen et al., "Punica: Multi-Tenant LoRA Serving", 2023), so that work and memory reads
grow with the number of rows that have an adapter.

For the torch thread. Knows nothing of students, versions or leases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brain_server.torch_engine.compute.decoder import Segment
from brain_server.torch_engine.compute.row_products import EmbeddingBagProducts, MatmulProducts
from brain_server.torch_engine.compute.slot_layout import GroupLayout, SlotLayout, SlotWeights
from mesh.lm.llama_shape import Shape
from mesh.lm.lora import LoraSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerTables:
    """The tables of one layer's group: [slots, 1, in, width] and [slots, tiles, rank, tile]."""

    layout: GroupLayout
    down_S1IW: Tensor
    up_STRO: Tensor


class SlotTables:
    """The factors of as many adapters as there are slots.

    Attributes:
        device: Where the tables are.
    """

    def __init__(self, shape: Shape, *, spec: LoraSpec, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocates the tables.

        Args:
            shape: Shape of the decoder.
            spec: The highest rank and all target modules that an adapter may have.
            slots: Number of adapters at the same time.
            dtype: Type of the decoder's numbers; another would cost two conversions per token in every module.
            device: Device of the decoder.

        Raises:
            AdapterIncompatible: The decoder lacks a target module.
        """
        self.device = device
        self._layout = SlotLayout(shape, spec=spec, dtype=dtype, device=device)
        blank = self._layout.blank()
        self._down = {group: _allocate(factor, slots, device) for group, factor in blank.down.items()}
        self._up = {group: _allocate(factor, slots, device) for group, factor in blank.up.items()}
        # Views are made once, because every step needs those of every layer.
        self._of_layers = {
            group: [
                _LayerTables(layout=layout, down_S1IW=down_S1IW, up_STRO=up_STRO)
                for down_S1IW, up_STRO in zip(self._down[group], self._up[group], strict=True)
            ]
            for group, layout in self._layout.groups.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes allocated, whether in use or not."""
        return sum(table.nbytes for table in (*self._down.values(), *self._up.values()))

    def pack(self, state: Mapping[str, Tensor], *, scaling: float) -> SlotWeights:
        """See `SlotLayout.pack`."""
        return self._layout.pack(state, scaling=scaling)

    @torch.inference_mode()
    def put(self, slot: int, weights: SlotWeights) -> None:
        """Copies an adapter into a slot."""
        for tables, factors in ((self._down, weights.down), (self._up, weights.up)):
            for group, factor in factors.items():
                tables[group][:, slot].copy_(factor, non_blocking=True)

    @torch.inference_mode()
    def wipe(self, slot: int) -> None:
        """Clears a slot."""
        for table in (*self._down.values(), *self._up.values()):
            table[:, slot] = 0

    def step(
        self, lane_slots: Sequence[int | None], prefill: Sequence[tuple[Segment, int | None]]
    ) -> "SlotUpdates | None":
        """Returns what adapters add in one step; None if no row has an adapter.

        Args:
            lane_slots: The slot of each row of the lane, None for the base model.
            prefill: The segments behind the lane with their slots.
        """
        if all(slot is None for slot in (*lane_slots, *(slot for _, slot in prefill))):
            return None
        return SlotUpdates(self, lane_slots=lane_slots, prefill=prefill)

    def of_layer(self, layer: int, group: str) -> _LayerTables | None:
        """Returns the tables of one layer's group, or None if the group has no target modules."""
        of_layers = self._of_layers.get(group)
        return None if of_layers is None else of_layers[layer]


class SlotUpdates:
    """What the adapters of one step add to the outputs of the decoder's linear maps."""

    def __init__(
        self,
        tables: SlotTables,
        *,
        lane_slots: Sequence[int | None],
        prefill: Sequence[tuple[Segment, int | None]],
    ) -> None:
        self._tables = tables
        device = tables.device
        rows = [row for row, slot in enumerate(lane_slots) if slot is not None]
        lane_rows = len(lane_slots)
        every_row_adapts = len(rows) == lane_rows
        # If every row of the lane has an adapter, the lane is a view; if there is no prefill, it is the whole input.
        self._rows: Tensor | slice = slice(0, lane_rows) if every_row_adapts else torch.tensor(rows, device=device)
        self._is_whole_input = every_row_adapts and not prefill
        slots_B = torch.tensor([slot for slot in lane_slots if slot is not None], device=device)
        products = EmbeddingBagProducts if device.type == "cpu" else MatmulProducts
        self._products = products(slots_B) if rows else None
        self._prefill: list[tuple[slice, int]] = []
        start = lane_rows
        for segment, slot in prefill:
            if slot is not None:
                self._prefill.append((slice(start, start + len(segment.tokens)), slot))
            start += len(segment.tokens)

    def add(self, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
        """See `brain_server.torch_engine.compute.decoder.Adapters`."""
        tables = self._tables.of_layer(layer, group)
        if tables is None:
            return
        layout, rank = tables.layout, tables.up_STRO.shape[2]
        if self._products is not None:
            x_BI = x_NI if self._is_whole_input else x_NI[self._rows]
            narrow_BW = self._products(x_BI.unsqueeze(1), tables.down_S1IW).squeeze(1)
            narrow_BTR = narrow_BW.index_select(1, layout.columns_W).view(len(narrow_BW), -1, rank)
            update_BO = self._products(narrow_BTR, tables.up_STRO).flatten(1)
            for tile_outputs, outputs in layout.spans:
                if isinstance(self._rows, slice):
                    out_NO[self._rows, outputs].add_(update_BO[:, tile_outputs])
                else:
                    out_NO[:, outputs].index_add_(0, self._rows, update_BO[:, tile_outputs])
        for tokens, slot in self._prefill:
            narrow_NW = x_NI[tokens] @ tables.down_S1IW[slot, 0]
            narrow_TNR = narrow_NW.index_select(1, layout.columns_W).view(len(narrow_NW), -1, rank).transpose(0, 1)
            update_NO = torch.bmm(narrow_TNR, tables.up_STRO[slot]).transpose(0, 1).flatten(1)
            for tile_outputs, outputs in layout.spans:
                out_NO[tokens, outputs].add_(update_NO[:, tile_outputs])


def _allocate(factor: Tensor, slots: int, device: torch.device) -> Tensor:
    layers, *widths = factor.shape
    return torch.zeros(layers, slots, *widths, dtype=factor.dtype, device=device)
