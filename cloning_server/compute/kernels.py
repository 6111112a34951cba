"""Operations of a frozen model's layers, each with a hand-written backward function.

The parameters are frozen: only inputs get gradients. Products keep the dtype of their factors, sums are taken in fp32.
No autograd graph is recorded: its bookkeeping would be a good part of a step's thousands of small operations.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# Maps the gradient of a part's output to the gradient of its input.
Backward: TypeAlias = Callable[[Tensor], Tensor]
# Maps the gradient of attention's output to the gradients of queries, keys and values.
AttentionBackward: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

# Rows of logits per block: enough to amortise reading the head's weights, few enough to stay in the cache.
_HEAD_ROWS = 64


def rms_norm(x_NH: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Backward]:
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

    The gradient is the inverse rotation: the same function with the negative sine.
    """
    half = x_NXD.shape[-1] // 2
    rotated_NXD = x_NXD * cos_N1D
    rotated_NXD[..., :half].addcmul_(x_NXD[..., half:], sin_N1D[..., :half], value=-1)
    rotated_NXD[..., half:].addcmul_(x_NXD[..., :half], sin_N1D[..., half:])
    return rotated_NXD


def attend(
    queries_RKQD: Tensor, keys_RKTD: Tensor, values_RKTD: Tensor, bias: Tensor
) -> tuple[Tensor, AttentionBackward]:
    """Attention, `softmax(queries @ keys / sqrt(D) + bias) @ values`, with gradients for queries, keys and values.

    On a CPU, plain matrix products are fastest for the short rows of training: the gradient of torch's fused kernel
    takes three times as long there.
    """
    implementation = attend_fused if queries_RKQD.is_cuda else attend_by_products
    return implementation(queries_RKQD, keys_RKTD, values_RKTD, bias)


def attend_by_products(
    queries_RKQD: Tensor, keys_RKTD: Tensor, values_RKTD: Tensor, bias: Tensor
) -> tuple[Tensor, AttentionBackward]:
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
) -> tuple[Tensor, AttentionBackward]:
    """See `attend`: torch's own kernel, with the backward function that autograd records."""
    with torch.enable_grad():
        queries, keys, values = (tensor.detach().requires_grad_() for tensor in (queries_RKQD, keys_RKTD, values_RKTD))
        attended_RKQD = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)

    def back(grad_RKQD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        to_queries, to_keys, to_values = torch.autograd.grad(attended_RKQD, (queries, keys, values), grad_RKQD)
        return to_queries, to_keys, to_values

    return attended_RKQD.detach(), back


def token_nats(x_MH: Tensor, head_VH: Tensor, targets_M: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats, [M] in fp32; only a block of logits is in memory at a time."""
    blocks = zip(x_MH.split(_HEAD_ROWS), targets_M.split(_HEAD_ROWS), strict=True)
    return torch.cat([_nats(_log_probabilities(x_BH, head_VH), targets_B) for x_BH, targets_B in blocks])


def token_nats_and_gradient(
    x_MH: Tensor, head_VH: Tensor, targets_M: Tensor, weights_M: Tensor
) -> tuple[Tensor, Tensor]:
    """As `token_nats`, with the gradient of the weighted sum of the nats with respect to `x_MH`.

    Both are computed from the same block of logits (Hsu et al., "Liger Kernel", 2024).
    """
    nats, grads = [], []
    for x_BH, targets_B in zip(x_MH.split(_HEAD_ROWS), targets_M.split(_HEAD_ROWS), strict=True):
        logprobs_BV = _log_probabilities(x_BH, head_VH)
        nats.append(_nats(logprobs_BV, targets_B))
        error_BV = logprobs_BV.exp_()
        error_BV.scatter_add_(1, targets_B.unsqueeze(1), error_BV.new_full((len(targets_B), 1), -1.0))
        grads.append(error_BV.to(x_MH.dtype) @ head_VH)
    return torch.cat(nats), torch.cat(grads).mul_(weights_M.to(x_MH.dtype).unsqueeze(1))


def _log_probabilities(x_BH: Tensor, head_VH: Tensor) -> Tensor:
    """Log-probabilities, [B, V] in fp32."""
    return F.log_softmax(F.linear(x_BH, head_VH), dim=-1, dtype=torch.float32)


def _nats(logprobs_BV: Tensor, targets_B: Tensor) -> Tensor:
    return -logprobs_BV.gather(1, targets_B.unsqueeze(1)).squeeze(1)
