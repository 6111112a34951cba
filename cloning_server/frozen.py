"""Frozen linear maps as they are trained through: only inputs get gradients, from weights in the fastest layout.

On a CPU oneDNN reads weights in blocks; those of a plain matrix it must first bring into that layout, in every product.
So small models are kept in it, once for the products and once, transposed, for their gradients.

Knows nothing of layers or adapters.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import Function

Map: TypeAlias = Callable[[Tensor], Tensor]

# Of a model's linear weights that are kept in blocks, as that takes twice their memory beside themselves: enough for
# the default base model in fp32 (425 MB), far from what a machine without a GPU should spend on one of some billions.
MOST_BYTES = 1024**3
# What the layout is made for; it serves any number of rows.
_USUAL_ROWS = 512
_DTYPES = frozenset({torch.bfloat16, torch.float32})


def are_kept_in_blocks(modules: Iterable[nn.Module]) -> bool:
    """Whether a model's linear maps are plain matrices on a CPU, and few enough for another two copies."""
    weights = [module.weight if type(module) is nn.Linear else None for module in modules]
    plain = [one for one in weights if one is not None and one.device.type == "cpu" and one.dtype in _DTYPES]
    return len(plain) == len(weights) and sum(one.nbytes for one in plain) <= MOST_BYTES


class BlockedMap:
    """One linear map with its weights in blocks; equal to the module's but for rounding."""

    def __init__(self, module: nn.Linear) -> None:
        weight_OI = module.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _USUAL_ROWS)
        self.transposed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.t().contiguous(), _USUAL_ROWS)
        self.bias = module.bias

    def __call__(self, x_NI: Tensor) -> Tensor:
        """Maps [N, in] to [N, out]."""
        mapped_NO: Tensor = _BlockedProduct.apply(x_NI, self)  # type: ignore[no-untyped-call] # torch's
        return mapped_NO


class _BlockedProduct(Function):
    @staticmethod
    def forward(ctx: Function, x_NI: Tensor, blocked: BlockedMap) -> Tensor:
        ctx.blocked = blocked  # type: ignore[attr-defined] # a context takes any attribute
        return _product(x_NI, blocked.weight, blocked.bias)

    @staticmethod
    def backward(ctx: Function, *grads: Tensor) -> tuple[Tensor, None]:
        blocked: BlockedMap = ctx.blocked  # type: ignore[attr-defined]
        return _product(grads[0].contiguous(), blocked.transposed, None), None


def _product(x_NI: Tensor, weight: Tensor, bias_O: Tensor | None) -> Tensor:
    mapped_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight, bias_O, "none", [], "")
    return mapped_NO
