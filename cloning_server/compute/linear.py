"""Frozen linear maps as they are trained through: only inputs get gradients, from weights in the fastest layout.

On a CPU oneDNN reads weights in blocks; those of a plain matrix it must first bring into that layout, in every product.
So small models are kept in it, once for the products and once, transposed, for their gradients.

Knows nothing of layers or adapters.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cloning_server.compute.kernels import Back
from mesh.lm.blocks import can_be_blocked

# Maps [N, in] to [N, out], and tells the way back.
Map: TypeAlias = Callable[[Tensor], tuple[Tensor, Back]]

# Of a model's linear weights that are kept in blocks, as that takes twice their memory beside themselves: enough for
# the default base model in fp32 (425 MB), far from what a machine without a GPU should spend on one of some billions.
MOST_BYTES = 1024**3
# What the layout is made for; it serves any number of rows.
_USUAL_ROWS = 512


def maps_of(modules: Sequence[nn.Linear]) -> list[Map]:
    """A model's linear maps, each as its weights are best trained through."""
    if are_kept_in_blocks(modules):
        return [BlockedMap(module) for module in modules]
    return [PlainMap(module) if type(module) is nn.Linear else RecordedMap(module) for module in modules]


def are_kept_in_blocks(modules: Iterable[nn.Module]) -> bool:
    """Whether a model's linear maps are plain matrices on a CPU, and few enough for another two copies."""
    weights = [module.weight if type(module) is nn.Linear else None for module in modules]
    plain = [one for one in weights if one is not None and can_be_blocked(one)]
    return len(plain) == len(weights) and sum(one.nbytes for one in plain) <= MOST_BYTES


class BlockedMap:
    """One linear map with its weights in blocks; equal to the module's but for rounding."""

    def __init__(self, module: nn.Linear) -> None:
        weight_OI = module.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _USUAL_ROWS)
        self._transposed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.t().contiguous(), _USUAL_ROWS)
        self._bias = module.bias

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Back]:
        """See `Map`."""
        return _product(x_NI, self._weight, self._bias), self._back

    def _back(self, grad_NO: Tensor) -> Tensor:
        return _product(grad_NO.contiguous(), self._transposed, None)


class PlainMap:
    """One linear map with its weights as they are."""

    def __init__(self, module: nn.Linear) -> None:
        self._weight_OI = module.weight.detach()
        self._bias = module.bias

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Back]:
        """See `Map`."""
        return F.linear(x_NI, self._weight_OI, self._bias), self._back

    def _back(self, grad_NO: Tensor) -> Tensor:
        return grad_NO @ self._weight_OI


class RecordedMap:
    """A module that maps in a way of its own, as a quantised one does: its way back is what autograd records of it.

    Raises:
        ValueError: The weights of a 4-bit module are repacked for inference, so that they have no gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        _prevent_repacking(module)
        self._module = module

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Back]:
        """See `Map`; there is no way back where nothing is recorded, as in torch's inference mode."""
        with torch.enable_grad():
            taken_NI = x_NI.detach().requires_grad_()
            given_NO = self._module(taken_NI)

        def back(grad_NO: Tensor) -> Tensor:
            (grad_NI,) = torch.autograd.grad(given_NO, taken_NI, grad_NO)
            return grad_NI

        return given_NO.detach(), back


def _prevent_repacking(module: nn.Module) -> None:
    """Keeps the weights of a 4-bit module in the layout that autograd can go back through.

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
