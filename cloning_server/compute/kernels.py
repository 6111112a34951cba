"""Parts of a frozen model's layers, each with the way back for its gradient, written out.

The parameters are frozen: only inputs get gradients. Products keep their factors' dtype, sums are taken in fp32. No
autograd graph is recorded: of a step's thousands of small operations its book-keeping would be a good part.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# Takes the gradient of what a part gave to that of what it took.
Back: TypeAlias = Callable[[Tensor], Tensor]
ThreeBack: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

# Rows of logits at a time: enough to pay the head's way through memory, few enough for them to stay near the cache.
_HEAD_ROWS = 64


def rms_norm(x_NH: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Back]:
    """Root mean square layer normalisation (Zhang and Sennrich, 2019), normalised in fp32."""
    wide_NH = x_NH.float()
    inverse_N1 = torch.rsqrt(torch.linalg.vecdot(wide_NH, wide_NH).div_(x_NH.shape[-1]).add_(eps)).unsqueeze(-1)
    normed_NH = (wide_NH * inverse_N1).to(x_NH.dtype)

    def back(grad_NH: Tensor) -> Tensor:
        wide_NH, grad_NH = normed_NH.float(), (grad_NH * weight_H).float()
        along_N1 = torch.linalg.vecdot(grad_NH, wide_NH).div_(wide_NH.shape[-1]).unsqueeze(-1)
        return grad_NH.addcmul_(wide_NH, along_N1, value=-1).mul_(inverse_N1).to(normed_NH.dtype)

    return normed_NH * weight_H, back


def swiglu(gate_NI: Tensor, up_NI: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """`silu(gate) * up` (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def back(grad_NI: Tensor) -> tuple[Tensor, Tensor]:
        to_up_NI = F.silu(gate_NI).mul_(grad_NI)
        return torch.ops.aten.silu_backward(grad_NI * up_NI, gate_NI), to_up_NI

    return F.silu(gate_NI).mul_(up_NI), back


def rotate(x_NXD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """Rotary positions (Su et al., "RoFormer", 2021), the halves of a head being the parts of complex numbers.

    The way back is the same turn the other way, by the negative sine.
    """
    half = x_NXD.shape[-1] // 2
    turned_NXD = x_NXD * cos_N1D
    turned_NXD[..., :half].addcmul_(x_NXD[..., half:], sin_N1D[..., :half], value=-1)
    turned_NXD[..., half:].addcmul_(x_NXD[..., :half], sin_N1D[..., half:])
    return turned_NXD


def attend(queries_RKQD: Tensor, keys_RKTD: Tensor, values_RKTD: Tensor, bias: Tensor) -> tuple[Tensor, ThreeBack]:
    """Attention, `softmax(queries @ keys / sqrt(D) + bias) @ values`; back to queries, keys and values.

    For the short rows of a training a CPU takes it as products fastest: the gradient of torch's fused kernel takes
    thrice as long there.
    """
    by = attend_fused if queries_RKQD.is_cuda else attend_by_products
    return by(queries_RKQD, keys_RKTD, values_RKTD, bias)


def attend_by_products(
    queries_RKQD: Tensor, keys_RKTD: Tensor, values_RKTD: Tensor, bias: Tensor
) -> tuple[Tensor, ThreeBack]:
    """See `attend`."""
    scale = queries_RKQD.shape[-1] ** -0.5
    scaled_RKQD = queries_RKQD * scale
    weights_RKQT = (scaled_RKQD @ keys_RKTD.transpose(-1, -2)).add_(bias).softmax(dim=-1)

    def back(grad_RKQD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grad_RKQT = grad_RKQD @ values_RKTD.transpose(-1, -2)
        along_RKQ1 = torch.linalg.vecdot(grad_RKQT, weights_RKQT).unsqueeze(-1)
        to_scores_RKQT = grad_RKQT.sub_(along_RKQ1).mul_(weights_RKQT)
        to_queries_RKQD = (to_scores_RKQT @ keys_RKTD).mul_(scale)
        to_keys_RKTD = to_scores_RKQT.transpose(-1, -2) @ scaled_RKQD
        return to_queries_RKQD, to_keys_RKTD, weights_RKQT.transpose(-1, -2) @ grad_RKQD

    return weights_RKQT @ values_RKTD, back


def attend_fused(
    queries_RKQD: Tensor, keys_RKTD: Tensor, values_RKTD: Tensor, bias: Tensor
) -> tuple[Tensor, ThreeBack]:
    """See `attend`: torch's own kernel, with the way back that autograd records of it."""
    with torch.enable_grad():
        queries, keys, values = (one.detach().requires_grad_() for one in (queries_RKQD, keys_RKTD, values_RKTD))
        given_RKQD = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)

    def back(grad_RKQD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        to_queries, to_keys, to_values = torch.autograd.grad(given_RKQD, (queries, keys, values), grad_RKQD)
        return to_queries, to_keys, to_values

    return given_RKQD.detach(), back


def token_nats(x_MH: Tensor, head_VH: Tensor, targets_M: Tensor) -> Tensor:
    """How unlikely each target is, [M] in fp32; the logits of all of them are never in memory at once."""
    blocks = zip(x_MH.split(_HEAD_ROWS), targets_M.split(_HEAD_ROWS), strict=True)
    return torch.cat([_nats(_said(x_BH, head_VH), targets_B) for x_BH, targets_B in blocks])


def token_nats_and_gradient(
    x_MH: Tensor, head_VH: Tensor, targets_M: Tensor, weights_M: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, and the gradient of their weighted sum to `x_MH`.

    Both are computed while a block of logits is at hand (Hsu et al., "Liger Kernel", 2024).
    """
    nats, grads = [], []
    for x_BH, targets_B in zip(x_MH.split(_HEAD_ROWS), targets_M.split(_HEAD_ROWS), strict=True):
        said_BV = _said(x_BH, head_VH)
        nats.append(_nats(said_BV, targets_B))
        wrong_BV = said_BV.exp_()
        wrong_BV.scatter_add_(1, targets_B.unsqueeze(1), wrong_BV.new_full((len(targets_B), 1), -1.0))
        grads.append(wrong_BV.to(x_MH.dtype) @ head_VH)
    return torch.cat(nats), torch.cat(grads).mul_(weights_M.to(x_MH.dtype).unsqueeze(1))


def _said(x_BH: Tensor, head_VH: Tensor) -> Tensor:
    """Log-probabilities, [B, V] in fp32."""
    return F.log_softmax(F.linear(x_BH, head_VH), dim=-1, dtype=torch.float32)


def _nats(said_BV: Tensor, targets_B: Tensor) -> Tensor:
    return -said_BV.gather(1, targets_B.unsqueeze(1)).squeeze(1)
