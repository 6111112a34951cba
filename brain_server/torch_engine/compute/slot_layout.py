"""The layout of one adapter's numbers in a slot, and the packing of PEFT's factors into it.

The modules of one group (see `mesh.lm.llama_shape.GROUPS`) read the same input and can have different widths. Their
outputs are cut into tiles of one width, so that one product serves all of them. A lower rank than the slot's is padded
with zeros, which add nothing. Knows nothing of slots, steps or students.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mesh.errors import AdapterIncompatible
from mesh.lm.llama_shape import GROUPS, Shape
from mesh.lm.lora import LoraSpec, is_finite

_PREFIX = "base_model.model.model.layers"
_PARENTS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotWeights:
    """An adapter's factors of all layers, ready to be copied into a slot. `up` includes the adapter's scaling.

    Attributes:
        down: First factors by group, [layers, 1, in, width] each. The width is the slot's rank times the number of the
            group's target modules.
        up: Second factors by group, [layers, tiles, rank, tile] each; see `GroupLayout`.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLayout:
    """The target modules of one group, and the tiles of their outputs.

    Attributes:
        modules: Names of the target modules, in the order of their outputs.
        inputs: Width of their input.
        tile: Width of a tile.
        tiles: Range of each module's tiles, by module.
        columns_W: Column of the first product that each tile and rank reads, [tiles * rank].
        spans: Pairs of a range among the outputs of all tiles, side by side, and the range of the group's outputs that
            it is added to.
    """

    modules: Sequence[str]
    inputs: int
    tile: int
    tiles: Mapping[str, slice]
    columns_W: Tensor
    spans: Sequence[tuple[slice, slice]]


class SlotLayout:
    """Where each number of an adapter goes. Every slot has room for the highest rank and all target modules.

    Attributes:
        groups: Layout of each group that has target modules, by group.
    """

    def __init__(self, shape: Shape, *, spec: LoraSpec, dtype: torch.dtype, device: torch.device) -> None:
        """Lays out the groups.

        Args:
            shape: Shape of the base model.
            spec: The highest rank and all target modules that an adapter may have.
            dtype: Type of the packed numbers.
            device: Device of the tables, for `GroupLayout.columns_W`.

        Raises:
            AdapterIncompatible: The base model lacks a target module.
        """
        unknown_modules = set(spec.target_modules).difference(*GROUPS.values())
        if unknown_modules:
            raise AdapterIncompatible(f"the base model lacks {', '.join(sorted(unknown_modules))}")
        self._shape = shape
        self._spec = spec
        self._dtype = dtype
        layouts = {group: _group_layout(shape, group, spec=spec, device=device) for group in GROUPS}
        self.groups = {group: layout for group, layout in layouts.items() if layout is not None}

    def blank(self) -> SlotWeights:
        """Returns the packed factors of an adapter that adds nothing: zeros on the CPU."""
        rank = self._spec.rank

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(self._shape.layers, *sizes, dtype=self._dtype)

        layouts = self.groups.items()
        return SlotWeights(
            down={group: zeros(1, layout.inputs, rank * len(layout.modules)) for group, layout in layouts},
            up={group: zeros(len(layout.columns_W) // rank, rank, layout.tile) for group, layout in layouts},
        )

    def pack(self, state: Mapping[str, Tensor], *, scaling: float) -> SlotWeights:
        """Packs an adapter's factors. For any thread.

        Goes layer by layer, because torch does small operations on the calling thread alone. Large operations would
        take the cores from the step that runs meanwhile.

        Args:
            state: Factors by PEFT's names: `….lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank].
            scaling: Factor of their product.

        Raises:
            AdapterIncompatible: It has other modules, other widths, a higher rank, or numbers too large for the dtype.
        """
        weights = self.blank()
        unpacked_factors = dict(state)
        for group, layout in self.groups.items():
            for index, module in enumerate(layout.modules):
                ranks = slice(index * self._spec.rank, (index + 1) * self._spec.rank)
                down_LIR = weights.down[group][:, 0, :, ranks]
                up_LTRO = weights.up[group][:, layout.tiles[module]]
                self._pack_module(unpacked_factors, module, down_LIR=down_LIR, up_LTRO=up_LTRO, scaling=scaling)
        if unpacked_factors:
            raise AdapterIncompatible(f"the slots have no room for the adapter's {min(unpacked_factors)}")
        factors = (*weights.down.values(), *weights.up.values())
        if not all(is_finite(of_layer) for factor in factors for of_layer in factor):
            raise AdapterIncompatible(f"the adapter has numbers that are too large for {self._dtype}")
        return weights

    def _pack_module(
        self, factors: dict[str, Tensor], module: str, *, down_LIR: Tensor, up_LTRO: Tensor, scaling: float
    ) -> None:
        """Copies one module's factors of all layers to their place, and removes them from `factors`."""
        inputs, outputs = self._shape.widths(module)
        parent = f"{_PARENTS.get(module, 'mlp')}.{module}"
        downs_RI = self._pop_factor(factors, f"{parent}.lora_A.weight", rank_axis=0, width=inputs)
        ups_OR = self._pop_factor(factors, f"{parent}.lora_B.weight", rank_axis=1, width=outputs)
        if not downs_RI and not ups_OR:
            return
        if not downs_RI or not ups_OR or downs_RI[0].shape[0] != ups_OR[0].shape[1]:
            raise AdapterIncompatible(f"the adapter's two factors of {module} have different ranks, or one is missing")
        rank, tiles = downs_RI[0].shape[0], up_LTRO.shape[1]
        for layer, (down_RI, up_OR) in enumerate(zip(downs_RI, ups_OR, strict=True)):
            down_LIR[layer, :, :rank] = down_RI.T
            up_LTRO[layer, :, :rank] = (up_OR * scaling).view(tiles, -1, rank).transpose(1, 2)

    def _pop_factor(self, factors: dict[str, Tensor], name: str, *, rank_axis: int, width: int) -> list[Tensor]:
        """Removes and returns one factor of every layer; empty if no layer has it."""
        keys = [f"{_PREFIX}.{layer}.{name}" for layer in range(self._shape.layers)]
        of_layers = [factors.pop(key) for key in keys if key in factors]
        shapes = {tuple(factor.shape) for factor in of_layers}
        sizes = next(iter(shapes), (0, 0))
        fits = len(shapes) == 1 and len(sizes) == 2 and sizes[1 - rank_axis] == width
        if of_layers and (len(of_layers) < len(keys) or not fits or sizes[rank_axis] > self._spec.rank):
            raise AdapterIncompatible(
                f"the adapter's {name} does not fit: {len(of_layers)} of {len(keys)} layers have it, with shape "
                f"{' or '.join(sorted(map(str, shapes)))}; the slots hold width {width} and at most rank "
                f"{self._spec.rank}"
            )
        return of_layers


def _group_layout(shape: Shape, group: str, *, spec: LoraSpec, device: torch.device) -> GroupLayout | None:
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
    return GroupLayout(
        modules=modules,
        inputs=shape.widths(modules[0])[0],
        tile=tile,
        tiles=tiles,
        columns_W=torch.tensor(columns, device=device),
        spans=_merge_neighbours(spans),
    )


def _merge_neighbours(spans: Sequence[tuple[slice, slice]]) -> list[tuple[slice, slice]]:
    """Merges adjacent spans, because each span is an operation in every layer."""
    merged_spans = [spans[0]]
    for update, output in spans[1:]:
        last_update, last_output = merged_spans[-1]
        if last_output.stop == output.start:
            merged_spans[-1] = slice(last_update.start, update.stop), slice(last_output.start, output.stop)
        else:
            merged_spans.append((update, output))
    return merged_spans
