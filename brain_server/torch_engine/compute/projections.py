"""Linear maps in the fastest way on each device: several as one, in the memory layout that the device reads fastest.

Knows nothing of layers or adapters.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mesh.lm.blocks import can_be_blocked

# Number of rows that the layout is optimised for; it works for any number.
_USUAL_ROWS = 8


class Projection(Protocol):
    """One or more linear maps of the same input, their outputs side by side."""

    def __call__(self, x_NI: Tensor) -> Tensor:
        """Maps [N, in] to [N, out]. The caller may write to the result."""
        ...

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """Returns the map's output plus the residual."""
        ...


def take_projection(modules: Sequence[nn.Module]) -> Projection:
    """Makes one projection of modules with the same input, and moves plain weights out of them, to hold each once.

    Modules of bitsandbytes are used as they are, because they pack their weights in their own formats.
    """
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) != len(modules):
        return _ModulesProjection(modules)
    weight_OI = torch.cat([linear.weight.data for linear in linears])
    # Of a model's maps with the same input, all have a bias or none has.
    have_bias = all("bias" in dict(linear.named_parameters()) for linear in linears)
    bias_O = torch.cat([linear.get_parameter("bias").data for linear in linears]) if have_bias else None
    for linear in linears:
        linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    return _MkldnnProjection(weight_OI, bias_O) if can_be_blocked(weight_OI) else _MatrixProjection(weight_OI, bias_O)


class _MkldnnProjection:
    """Weights in oneDNN's blocked layout, which a CPU reads about twice as fast as rows of a matrix."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _USUAL_ROWS)
        self._bias_O = bias_O

    def __call__(self, x_NI: Tensor) -> Tensor:
        out_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias_O, "none", [], "")
        return out_NO

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        out_NO: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_NI, residual_NO, self._weight, self._bias_O, "add")
        return out_NO


class _MatrixProjection:
    """All weights in one matrix."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OI = weight_OI
        self._bias_O = bias_O

    def __call__(self, x_NI: Tensor) -> Tensor:
        return F.linear(x_NI, self._weight_OI, self._bias_O)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return self(x_NI).add_(residual_NO)


class _ModulesProjection:
    """One module after the other."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = tuple(modules)

    def __call__(self, x_NI: Tensor) -> Tensor:
        return torch.cat([module(x_NI) for module in self._modules], dim=-1)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return self(x_NI).add_(residual_NO)
