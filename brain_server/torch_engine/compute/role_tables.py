"""Roles on the device: adapters of the Main Brain, pinned from the start, and what a step adds with them.

A role only reads prompts, so its factors serve segments of many tokens and lie apart from the students' slots: two
products per group of modules, and nothing for rows that name no role. For the torch thread. Knows nothing of students.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brain_server.torch_engine.compute.decoder import Adapters
from brain_server.torch_engine.compute.slot_layout import SlotLayout
from mesh.lm.llama_shape import GROUPS, Shape
from mesh.lm.lora import LoraSpec
from mesh.main_brain.roles import RoleName


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoleFactors:
    """A role's factors of one group in all layers: [layers, in, width] and [layers, width, out].

    The width is the rank times the number of the group's target modules; `up_LWO` is zero where a rank belongs to
    another module than a column.
    """

    down_LIW: Tensor
    up_LWO: Tensor


class RoleTables:
    """The factors of all pinned roles."""

    def __init__(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> None:
        """Pins nothing yet.

        Args:
            shape: Shape of the decoder.
            dtype: Type of the decoder's numbers.
            device: Device of the decoder.
        """
        self._shape = shape
        self._dtype = dtype
        self._device = device
        self._factors: dict[RoleName, Mapping[str, _RoleFactors]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that the roles take."""
        factors = [factors for of_role in self._factors.values() for factors in of_role.values()]
        return sum(factor.down_LIW.nbytes + factor.up_LWO.nbytes for factor in factors)

    @torch.inference_mode()
    def pin(self, role: RoleName, state: Mapping[str, Tensor], *, spec: LoraSpec, scaling: float) -> None:
        """Copies a role's factors to the device, in place of earlier ones.

        Args:
            role: The role.
            state: Factors by PEFT's names.
            spec: Rank and target modules of the factors.
            scaling: Factor of their product.

        Raises:
            AdapterIncompatible: The factors do not fit the decoder or the spec.
        """
        layout = SlotLayout(self._shape, spec=spec, dtype=self._dtype, device=self._device)
        weights = layout.pack(state, scaling=scaling)
        factors = {}
        for group, of_group in layout.groups.items():
            outputs = [self._shape.widths(module)[1] for module in GROUPS[group]]
            up_LWO = torch.zeros(self._shape.layers, spec.rank * len(of_group.modules), sum(outputs), dtype=self._dtype)
            for index, module in enumerate(of_group.modules):
                start = sum(outputs[: GROUPS[group].index(module)])
                ranks = slice(index * spec.rank, (index + 1) * spec.rank)
                up_LTRO = weights.up[group][:, of_group.tiles[module]]
                up_LWO[:, ranks, start : start + self._shape.widths(module)[1]] = up_LTRO.transpose(1, 2).flatten(2)
            down_LIW = weights.down[group][:, 0]
            factors[group] = _RoleFactors(down_LIW=down_LIW.to(self._device), up_LWO=up_LWO.to(self._device))
        self._factors[role] = factors

    def step(self, segments: Sequence[tuple[slice, RoleName]], *, others: Adapters | None) -> "RoleUpdates":
        """Returns what adapters add in a step that has roles.

        Args:
            segments: The range of each role's tokens among the step's tokens, and the role, which is pinned.
            others: What students' adapters add to other tokens of the step.
        """
        return RoleUpdates([(tokens, self._factors[role]) for tokens, role in segments], others=others)


class RoleUpdates:
    """What roles, and students' adapters beside them, add to the outputs of the decoder's linear maps in one step."""

    def __init__(
        self, segments: Sequence[tuple[slice, Mapping[str, _RoleFactors]]], *, others: Adapters | None
    ) -> None:
        self._segments = segments
        self._others = others

    def add(self, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
        """See `brain_server.torch_engine.compute.decoder.Adapters`."""
        if self._others is not None:
            self._others.add(layer, group, x_NI, out_NO)
        for tokens, factors in self._segments:
            if (of_group := factors.get(group)) is not None:
                out_NO[tokens].addmm_(x_NI[tokens] @ of_group.down_LIW[layer], of_group.up_LWO[layer])
