"""The linear maps of a model, as fast as the device does them: several as one, and in the layout that it reads fastest.

Knows nothing of layers or adapters.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows that the layout is made for; it serves any number of rows.
_USUAL_ROWS = 8
_PACKED_DTYPES = frozenset({torch.bfloat16, torch.float32})


class Projection(Protocol):
    """One or more linear maps of the same input, their outputs side by side."""

    def __call__(self, x_NI: Tensor) -> Tensor:
        """Maps [N, in] to [N, out]; the result is the caller's to write to."""
        ...

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """The same, plus the residual."""
        ...


def take_projection(modules: Sequence[nn.Module]) -> Projection:
    """Makes one projection of modules that read the same input, and takes plain weights out of them, to hold them once.

    bitsandbytes' modules stay whole, as their weights are packed in ways of their own.
    """
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) != len(modules):
        return _Separate(modules)
    weight_OI = torch.cat([linear.weight.data for linear in linears])
    # A model's maps of one input all have a bias, or none has.
    biased = all("bias" in dict(linear.named_parameters()) for linear in linears)
    bias_O = torch.cat([linear.get_parameter("bias").data for linear in linears]) if biased else None
    for linear in linears:
        linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    packed = weight_OI.device.type == "cpu" and weight_OI.dtype in _PACKED_DTYPES
    return _Packed(weight_OI, bias_O) if packed else _Fused(weight_OI, bias_O)


class _Packed:
    """In oneDNN's blocked layout, which a CPU reads about twice as fast as rows of a matrix."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _USUAL_ROWS)
        self._bias_O = bias_O

    def __call__(self, x_NI: Tensor) -> Tensor:
        mapped: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias_O, "none", [], "")
        return mapped

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        mapped: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_NI, residual_NO, self._weight, self._bias_O, "add")
        return mapped


class _Fused:
    """As one matrix."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OI = weight_OI
        self._bias_O = bias_O

    def __call__(self, x_NI: Tensor) -> Tensor:
        return F.linear(x_NI, self._weight_OI, self._bias_O)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return self(x_NI).add_(residual_NO)


class _Separate:
    """Module by module."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = tuple(modules)

    def __call__(self, x_NI: Tensor) -> Tensor:
        return torch.cat([module(x_NI) for module in self._modules], dim=-1)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return self(x_NI).add_(residual_NO)
