"""An adapter as it is trained: all its factors in one vector, so that clipping, stepping and keeping are each one call.

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
    """The two factors of one module: its update is `x @ A.T @ B.T`, times the scaling. A [rank, in], B [out, rank]."""

    a_RI: Tensor
    b_OR: Tensor


class LoraFactors:
    """One adapter's factors over a base model, fp32 on the base's device whatever the base is held in.

    Steps of training are below bf16's resolution. Two with the same seed are equal on any device.

    Attributes:
        vector: All factors one after another; its gradient is where a pass leaves it.
        scaling: What every update is multiplied by.
    """

    def __init__(self, model: PreTrainedModel, spec: LoraSpec, *, seed: int) -> None:
        """Makes a fresh adapter, which changes no answer: A Kaiming-uniform as in the paper's code, B zero.

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
        self.vector = torch.cat([one.flatten() for one in fresh]).to(model.device).requires_grad_()

    def pairs(self, dtype: torch.dtype) -> Mapping[str, Pair]:
        """The factors by the modules' names, as views of one copy in a dtype."""
        return self._pairs(self.vector.detach().to(dtype))

    def gradients(self) -> Mapping[str, Pair]:
        """Where the gradients of the factors are added up, in fp32, by the modules' names."""
        if self.vector.grad is None:
            self.vector.grad = torch.zeros_like(self.vector)
        return self._pairs(self.vector.grad)

    def state(self) -> dict[str, Tensor]:
        """A copy on the CPU, by PEFT's names."""
        copy = self.vector.detach().to("cpu", copy=True)
        return {name: piece.clone() for name, piece in zip(self._shapes, self._split(copy), strict=True)}

    @classmethod
    def of(cls, model: PreTrainedModel, state: Mapping[str, Tensor], *, scaling: float) -> Self:
        """A kept adapter, of its own rank and with its own targets.

        Raises:
            AdapterIncompatible: If it is not an adapter of this base model.
        """
        targets = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in state}
        rank = next((tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_A.weight")), 0)
        kept = cls(model, LoraSpec(rank=rank, target_modules=tuple(sorted(targets))), seed=0)
        kept.scaling = scaling
        kept.load(state, scaling=scaling)
        return kept

    def load(self, state: Mapping[str, Tensor], *, scaling: float) -> None:
        """Overwrites the factors with an adapter's; whatever its own scaling is, it says the same under this one's.

        A lower rank is filled up with zeros, which add nothing.

        Raises:
            AdapterIncompatible: If it has other targets, other widths, or a higher rank.
        """
        if state.keys() != self._shapes.keys():
            raise AdapterIncompatible("the adapter has other target modules than this one")
        whole = []
        for name, (rows, columns) in self._shapes.items():
            given, is_b = state[name], name.endswith("lora_B.weight")
            down, right = (rows - given.shape[0], columns - given.shape[1]) if given.dim() == 2 else (-1, -1)
            if (down if is_b else right) != 0 or down < 0 or right < 0:
                told = f"{tuple(given.shape)} into {(rows, columns)}"
                raise AdapterIncompatible(f"the adapter's {name} does not fit: {told}")
            filled = torch.nn.functional.pad(given.float(), (0, right, 0, down)).flatten()
            whole.append(filled * (scaling / self.scaling) if is_b else filled)
        self.vector.data.copy_(torch.cat(whole))

    def _pairs(self, vector: Tensor) -> Mapping[str, Pair]:
        pieces = self._split(vector)
        return {name: Pair(a_RI=next(pieces), b_OR=next(pieces)) for name in self._modules}

    def _split(self, vector: Tensor) -> Iterator[Tensor]:
        pieces = vector.split([rows * columns for rows, columns in self._shapes.values()])
        return (piece.view(shape) for piece, shape in zip(pieces, self._shapes.values(), strict=True))


def _modules_of(model: PreTrainedModel, spec: LoraSpec) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every target module, by name in the model's order."""
    found = {
        name: (int(module.in_features), int(module.out_features))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in spec.target_modules
    }
    if {name.rpartition(".")[2] for name in found} != set(spec.target_modules):
        raise AdapterIncompatible(f"the base model has not all of {', '.join(spec.target_modules)}")
    return found
