"""Frozen linear maps for training: only inputs get gradients, and weights are in the layout that is fastest.

On a CPU, oneDNN computes with blocked weights and reorders a plain matrix in every product. Small models are therefore
stored in blocks: once for the products and once, transposed, for their gradients.

Knows nothing of layers or adapters.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cloning_server.compute.kernels import Backward
from mesh.lm.blocks import can_be_blocked

# Maps [N, in] to [N, out], and returns the backward function.
Map: TypeAlias = Callable[[Tensor], tuple[Tensor, Backward]]

# Limit on the linear weights of a model that is stored in blocks, which takes another two copies of them. It admits the
# default base model in fp32 (425 MB) and keeps models of billions of parameters from filling a machine without a GPU.
MAX_BLOCKED_BYTES = 1024**3
# The number of rows that the layout is optimised for; it works with any.
_TYPICAL_ROWS = 512


def maps_of(modules: Sequence[nn.Linear]) -> list[Map]:
    """The linear maps of a model, each in the fastest form for its weights."""
    if fits_in_blocks(modules):
        return [BlockedMap(module) for module in modules]
    return [PlainMap(module) if type(module) is nn.Linear else RecordedMap(module) for module in modules]


def fits_in_blocks(modules: Iterable[nn.Module]) -> bool:
    """Whether a model's linear maps are plain matrices on a CPU, and small enough for another two copies."""
    weights = [module.weight if type(module) is nn.Linear else None for module in modules]
    plain = [weight for weight in weights if weight is not None and can_be_blocked(weight)]
    return len(plain) == len(weights) and sum(weight.nbytes for weight in plain) <= MAX_BLOCKED_BYTES


class BlockedMap:
    """One linear map with blocked weights; equals the module's up to rounding."""

    def __init__(self, module: nn.Linear) -> None:
        weight_OI = module.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _TYPICAL_ROWS)
        self._transposed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.t().contiguous(), _TYPICAL_ROWS)
        self._bias = module.bias

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Backward]:
        """See `Map`."""
        return _product(x_NI, self._weight, self._bias), self._back

    def _back(self, grad_NO: Tensor) -> Tensor:
        return _product(grad_NO.contiguous(), self._transposed, None)


class PlainMap:
    """One linear map with the module's own weights."""

    def __init__(self, module: nn.Linear) -> None:
        self._weight_OI = module.weight.detach()
        self._bias = module.bias

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Backward]:
        """See `Map`."""
        return F.linear(x_NI, self._weight_OI, self._bias), self._back

    def _back(self, grad_NO: Tensor) -> Tensor:
        return grad_NO @ self._weight_OI


class RecordedMap:
    """A module with arithmetic of its own, such as a quantised one; autograd records its backward function.

    Raises:
        ValueError: The weights of a 4-bit module are repacked for inference, so that they have no gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        _prevent_repacking(module)
        self._module = module

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Backward]:
        """See `Map`; the backward function fails in torch's inference mode, where autograd records nothing."""
        with torch.enable_grad():
            input_NI = x_NI.detach().requires_grad_()
            output_NO = self._module(input_NI)

        def back(grad_NO: Tensor) -> Tensor:
            (grad_NI,) = torch.autograd.grad(output_NO, input_NI, grad_NO)
            return grad_NI

        return output_NO.detach(), back


def _prevent_repacking(module: nn.Module) -> None:
    """Keeps the weights of a 4-bit module in the layout for which autograd has a gradient.

    On a CPU with AVX512-BF16, a bitsandbytes module in eval mode repacks its weights for good when it first maps an
    input that needs no gradient. From then on it maps with `gemv_4bit`, of which autograd records nothing.
    """
    quant_state = getattr(getattr(module, "weight", None), "quant_state", None)
    if getattr(quant_state, "packing_format_for_cpu", False):
        raise ValueError("a 4-bit module was used for inference before training: load the base model again to train")
    if hasattr(module, "support_avx512bf16_for_cpu"):
        cast("Any", module).support_avx512bf16_for_cpu = False


def _product(x_NI: Tensor, weight: Tensor, bias_O: Tensor | None) -> Tensor:
    mapped_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight, bias_O, "none", [], "")
    return mapped_NO
