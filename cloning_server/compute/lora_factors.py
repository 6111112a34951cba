"""An adapter under training: all LoRA factors in one vector, so that clipping, stepping and copying are one call each.

LoRA: Hu et al. (2021), https://arxiv.org/abs/2106.09685. The names are those of PEFT's files.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesh.errors import AdapterIncompatible
from mesh.lm.lora import LoraSpec

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The factors of one module: A [rank, in] and B [out, rank]. They add `scaling * x @ A.T @ B.T` to its output."""

    a_RI: Tensor
    b_OR: Tensor


class LoraFactors:
    """One adapter's factors for a base model: fp32 on the base model's device, whatever the dtype of the base model.

    Training steps are smaller than bf16's resolution. The same seed gives the same factors on any device.

    Attributes:
        vector: All factors, concatenated; passes add to its `grad`.
        scaling: Multiplies every update.
    """

    def __init__(self, model: PreTrainedModel, spec: LoraSpec, *, seed: int) -> None:
        """Initialises a new adapter, which changes no output: A Kaiming-uniform as in the paper's code, B zero.

        Raises:
            AdapterIncompatible: If the base model lacks the target modules.
        """
        self.scaling = spec.scaling
        self._modules = _modules_of(model, spec)
        self._shapes: dict[str, tuple[int, int]] = {}
        for name, (inputs, outputs) in self._modules.items():
            self._shapes[f"{_PREFIX}{name}.lora_A.weight"] = (spec.rank, inputs)
            self._shapes[f"{_PREFIX}{name}.lora_B.weight"] = (outputs, spec.rank)
        generator = torch.Generator().manual_seed(seed)
        fresh = [
            torch.nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
            if name.endswith("lora_A.weight")
            else torch.zeros(shape)
            for name, shape in self._shapes.items()
        ]
        self.vector = torch.cat([factor.flatten() for factor in fresh]).to(model.device).requires_grad_()

    def pairs(self, dtype: torch.dtype) -> Mapping[str, Pair]:
        """The factors by module name, as views of one copy in a dtype."""
        return self._pairs(self.vector.detach().to(dtype))

    def gradients(self) -> Mapping[str, Pair]:
        """The fp32 accumulators of the factors' gradients, by module name."""
        if self.vector.grad is None:
            self.vector.grad = torch.zeros_like(self.vector)
        return self._pairs(self.vector.grad)

    def state(self) -> dict[str, Tensor]:
        """A copy on the CPU, by PEFT's tensor names."""
        copy = self.vector.detach().to("cpu", copy=True)
        return {name: piece.clone() for name, piece in zip(self._shapes, self._split(copy), strict=True)}

    @classmethod
    def of(cls, model: PreTrainedModel, state: Mapping[str, Tensor], *, scaling: float) -> Self:
        """Loads an adapter with the rank and the target modules of its state.

        Raises:
            AdapterIncompatible: If the state is not an adapter of this base model.
        """
        targets = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in state}
        rank = next((tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_A.weight")), 0)
        factors = cls(model, LoraSpec(rank=rank, target_modules=tuple(sorted(targets))), seed=0)
        factors.scaling = scaling
        factors.load(state, scaling=scaling)
        return factors

    def load(self, state: Mapping[str, Tensor], *, scaling: float) -> None:
        """Overwrites the factors with an adapter's, rescaled so that its outputs stay the same under `self.scaling`.

        A lower rank is padded with zeros, which add nothing.

        Args:
            state: The adapter, by PEFT's tensor names.
            scaling: The scaling that the adapter was trained with.

        Raises:
            AdapterIncompatible: If the adapter has other target modules, other widths, or a higher rank.
        """
        if state.keys() != self._shapes.keys():
            raise AdapterIncompatible(
                "the adapter has other target modules than the one in training: choose a version with the same modules"
            )
        pieces = []
        for name, (rows, columns) in self._shapes.items():
            factor, is_b = state[name], name.endswith("lora_B.weight")
            down, right = (rows - factor.shape[0], columns - factor.shape[1]) if factor.dim() == 2 else (-1, -1)
            if (down if is_b else right) != 0 or down < 0 or right < 0:
                shapes = f"its shape {tuple(factor.shape)} does not fit into {(rows, columns)}"
                raise AdapterIncompatible(f"the adapter's {name} is incompatible: {shapes}")
            padded = torch.nn.functional.pad(factor.float(), (0, right, 0, down)).flatten()
            pieces.append(padded * (scaling / self.scaling) if is_b else padded)
        self.vector.data.copy_(torch.cat(pieces))

    def _pairs(self, vector: Tensor) -> Mapping[str, Pair]:
        pieces = self._split(vector)
        return {name: Pair(a_RI=next(pieces), b_OR=next(pieces)) for name in self._modules}

    def _split(self, vector: Tensor) -> Iterator[Tensor]:
        pieces = vector.split([rows * columns for rows, columns in self._shapes.values()])
        return (piece.view(shape) for piece, shape in zip(pieces, self._shapes.values(), strict=True))


def _modules_of(model: PreTrainedModel, spec: LoraSpec) -> dict[str, tuple[int, int]]:
    """Input and output widths of every target module, by name in the model's order."""
    widths = {
        name: (int(module.in_features), int(module.out_features))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in spec.target_modules
    }
    missing_modules = set(spec.target_modules) - {name.rpartition(".")[2] for name in widths}
    if missing_modules:
        raise AdapterIncompatible(f"the base model lacks {', '.join(sorted(missing_modules))}")
    return widths
