"""Adapters on the device: tables with room for a fixed number, and what a step adds with them.

The rows of a step find their adapter by the number of its slot, so that an adapter comes and goes by a copy into its
place in the tables and nothing is built or renamed. A lower rank than the table's is filled up with zeros, which add
nothing. The update of many rows with as many adapters is one gathered product for each factor (as in Chen et al.,
"Punica: Multi-Tenant LoRA Serving", 2023): work and reads grow with the rows that have an adapter.

For the torch thread. Knows nothing of students, versions or leases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brain_server.torch_engine.compute.decoder import Segment
from brain_server.torch_engine.compute.gathered import Bags, Products
from mesh.errors import AdapterIncompatible
from mesh.lm.llama_shape import GROUPS, Shape
from mesh.lm.lora import LoraSpec, is_finite

_PREFIX = "base_model.model.model.layers"
_PARENTS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}


@dataclass(frozen=True, slots=True)
class SlotWeights:
    """An adapter as the tables take it: the factors of all layers, with the adapter's scaling in the second.

    Attributes:
        down: By group, [layers, 1, in, width] each, where the width is the table's rank times the modules of the group
            that can have an adapter.
        up: By group, [layers, tiles, rank, tile] each; see `_Targets`.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Targets:
    """The modules of one group that can have an adapter.

    Their outputs are cut into tiles of one width, so that one product serves modules of different widths.

    Attributes:
        modules: In order of their outputs.
        inputs: Of each.
        tile: Outputs of a tile.
        tiles: By module, which tiles are its outputs.
        columns_W: By tile and rank, which column of the group's narrow side it is a product of.
        spans: Which outputs of all tiles, side by side, go to which of the group's outputs.
    """

    modules: Sequence[str]
    inputs: int
    tile: int
    tiles: Mapping[str, slice]
    columns_W: Tensor
    spans: Sequence[tuple[slice, slice]]


@dataclass(frozen=True, slots=True)
class _Factors:
    """The tables of one layer's group: [slots, 1, in, width] and [slots, tiles, rank, tile]."""

    targets: _Targets
    down_S1IW: Tensor
    up_STRO: Tensor


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
        found = {group: _targets(shape, group, spec=spec, device=device) for group in GROUPS}
        self._targets = {group: targets for group, targets in found.items() if targets is not None}
        blank = self._blank()
        self._down = {name: _table(one, slots, device) for name, one in blank.down.items()}
        self._up = {name: _table(one, slots, device) for name, one in blank.up.items()}
        # Views of the tables, made once: a step asks for those of every layer.
        self._factors = {
            group: [
                _Factors(targets, down_S1IW, up_STRO)
                for down_S1IW, up_STRO in zip(self._down[group], self._up[group], strict=True)
            ]
            for group, targets in self._targets.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, whatever is in them."""
        return sum(table.nbytes for table in (*self._down.values(), *self._up.values()))

    def pack(self, state: Mapping[str, Tensor], *, scaling: float) -> SlotWeights:
        """Makes of an adapter what a slot takes. For any thread.

        Goes layer by layer, as torch does small operations in the thread that asks for them: with threads of its own,
        each packing would take the cores from the step under way.

        Args:
            state: Factors by PEFT's names, `….lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank].
            scaling: What their product is multiplied by.

        Raises:
            AdapterIncompatible: Other modules, other widths, a higher rank, or numbers beyond the decoder's precision.
        """
        packed = self._blank()
        left = dict(state)
        for group, targets in self._targets.items():
            for place, module in enumerate(targets.modules):
                ranks = slice(place * self._spec.rank, (place + 1) * self._spec.rank)
                down_LIR = packed.down[group][:, 0, :, ranks]
                up_LTRO = packed.up[group][:, targets.tiles[module]]
                self._pack_module(left, module, down_LIR=down_LIR, up_LTRO=up_LTRO, scaling=scaling)
        if left:
            raise AdapterIncompatible(f"the slots have no room for the adapter's {min(left)}")
        if not all(is_finite(of_layer) for one in (*packed.down.values(), *packed.up.values()) for of_layer in one):
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

    def of_layer(self, layer: int, group: str) -> _Factors | None:
        """The factors of one layer's group, or None if its modules can't have any."""
        factors = self._factors.get(group)
        return None if factors is None else factors[layer]

    def _blank(self) -> SlotWeights:
        rank = self._spec.rank

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(self._shape.layers, *sizes, dtype=self._dtype)

        found = self._targets.items()
        return SlotWeights(
            down={group: zeros(1, one.inputs, rank * len(one.modules)) for group, one in found},
            up={group: zeros(len(one.columns_W) // rank, rank, one.tile) for group, one in found},
        )

    def _pack_module(
        self, left: dict[str, Tensor], module: str, *, down_LIR: Tensor, up_LTRO: Tensor, scaling: float
    ) -> None:
        """Puts one module's factors of all layers in their place, and takes them from what is left."""
        inputs, outputs = self._shape.widths(module)
        parent = f"{_PARENTS.get(module, 'mlp')}.{module}"
        downs_RI = self._take(left, f"{parent}.lora_A.weight", rank_axis=0, width=inputs)
        ups_OR = self._take(left, f"{parent}.lora_B.weight", rank_axis=1, width=outputs)
        if not downs_RI and not ups_OR:
            return
        if not downs_RI or not ups_OR or downs_RI[0].shape[0] != ups_OR[0].shape[1]:
            raise AdapterIncompatible(f"the adapter's two factors of {module} do not belong together")
        rank, tiles = downs_RI[0].shape[0], up_LTRO.shape[1]
        for layer, (down_RI, up_OR) in enumerate(zip(downs_RI, ups_OR, strict=True)):
            down_LIR[layer, :, :rank] = down_RI.T
            up_LTRO[layer, :, :rank] = (up_OR * scaling).view(tiles, -1, rank).transpose(1, 2)

    def _take(self, left: dict[str, Tensor], factor: str, *, rank_axis: int, width: int) -> list[Tensor]:
        """One factor of every layer, or nothing if no layer has it."""
        names = [f"{_PREFIX}.{layer}.{factor}" for layer in range(self._shape.layers)]
        found = [left.pop(name) for name in names if name in left]
        shapes = {tuple(one.shape) for one in found}
        sizes = next(iter(shapes), (0, 0))
        fits = len(shapes) == 1 and len(sizes) == 2 and sizes[1 - rank_axis] == width
        if found and (len(found) < len(names) or not fits or sizes[rank_axis] > self._spec.rank):
            raise AdapterIncompatible(
                f"the adapter's {factor} does not fit: {len(found)} of {len(names)} layers have it, as "
                f"{sorted(map(str, shapes))}, where rank {self._spec.rank} and width {width} do"
            )
        return found


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
        # Without rows of the base model in between, the lane is a view, and without segments it is all there is.
        self._rows: Tensor | slice = slice(0, lane) if len(rows) == lane else torch.tensor(rows, device=device)
        self._whole = len(rows) == lane and not segments
        slots_B = torch.tensor([slot for slot in slots_of_lane if slot is not None], device=device)
        self._gathered = (Bags if device.type == "cpu" else Products)(slots_B) if rows else None
        self._segments = []
        at = lane
        for segment, slot in segments:
            if slot is not None:
                self._segments.append((slice(at, at + len(segment.tokens)), slot))
            at += len(segment.tokens)

    def add(self, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
        """See `brain_server.torch_engine.compute.decoder.Adapters`."""
        factors = self._tables.of_layer(layer, group)
        if factors is None:
            return
        targets, rank = factors.targets, factors.up_STRO.shape[2]
        if self._gathered is not None:
            x_BI = x_NI if self._whole else x_NI[self._rows]
            narrow_BW = self._gathered(x_BI.unsqueeze(1), factors.down_S1IW).squeeze(1)
            narrow_BTR = narrow_BW.index_select(1, targets.columns_W).view(len(narrow_BW), -1, rank)
            update_BO = self._gathered(narrow_BTR, factors.up_STRO).flatten(1)
            for tiles, outputs in targets.spans:
                if isinstance(self._rows, slice):
                    out_NO[self._rows, outputs].add_(update_BO[:, tiles])
                else:
                    out_NO[:, outputs].index_add_(0, self._rows, update_BO[:, tiles])
        for place, slot in self._segments:
            narrow_NW = x_NI[place] @ factors.down_S1IW[slot, 0]
            narrow_TNR = narrow_NW.index_select(1, targets.columns_W).view(len(narrow_NW), -1, rank).transpose(0, 1)
            update_NO = torch.bmm(narrow_TNR, factors.up_STRO[slot]).transpose(0, 1).flatten(1)
            for tiles, outputs in targets.spans:
                out_NO[place, outputs].add_(update_NO[:, tiles])


def _targets(shape: Shape, group: str, *, spec: LoraSpec, device: torch.device) -> _Targets | None:
    modules = [module for module in GROUPS[group] if module in spec.target_modules]
    if not modules:
        return None
    tile = math.gcd(*(shape.widths(module)[1] for module in modules))
    tiles: dict[str, slice] = {}
    columns: list[int] = []
    spans: list[tuple[slice, slice]] = []
    output = update = 0
    for module in GROUPS[group]:
        width = shape.widths(module)[1]
        if module in modules:
            tiles[module] = slice(update // tile, (update + width) // tile)
            ranks = range(len(tiles) * spec.rank - spec.rank, len(tiles) * spec.rank)
            columns += [*ranks] * (width // tile)
            spans.append((slice(update, update + width), slice(output, output + width)))
            update += width
        output += width
    return _Targets(
        modules=modules,
        inputs=shape.widths(modules[0])[0],
        tile=tile,
        tiles=tiles,
        columns_W=torch.tensor(columns, device=device),
        spans=_joined(spans),
    )


def _joined(spans: Sequence[tuple[slice, slice]]) -> list[tuple[slice, slice]]:
    """The same with neighbours as one: each is an operation in every layer."""
    joined = [spans[0]]
    for update, output in spans[1:]:
        last_update, last_output = joined[-1]
        if last_output.stop == output.start:
            joined[-1] = slice(last_update.start, update.stop), slice(last_output.start, output.stop)
        else:
            joined.append((update, output))
    return joined


def _table(factor: Tensor, slots: int, device: torch.device) -> Tensor:
    layers, *widths = factor.shape
    return torch.zeros(layers, slots, *widths, dtype=factor.dtype, device=device)
