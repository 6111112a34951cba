"""Parts of a frozen model's layers with gradients written out, in fewer passes over memory than torch's own take.

The parameters are frozen: only inputs get gradients. Products keep their factors' dtype, sums are taken in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

# Rows of logits at a time: enough to pay the head's way through memory, few enough for them to stay near the cache.
_HEAD_ROWS = 64


def rms_norm(x_NH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """Root mean square layer normalisation (Zhang and Sennrich, 2019), normalised in fp32."""
    normed_NH: Tensor = _RmsNorm.apply(x_NH, weight_H, eps)  # type: ignore[no-untyped-call] # torch's
    return normed_NH


def swiglu(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """`silu(gate) * up` (Shazeer, "GLU Variants Improve Transformer", 2020)."""
    gated_NI: Tensor = _SwiGlu.apply(gate_NI, up_NI)  # type: ignore[no-untyped-call] # torch's
    return gated_NI


def rotate(x_NXD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """Rotary positions (Su et al., "RoFormer", 2021), the halves of a head being the parts of complex numbers."""
    rotated_NXD: Tensor = _Rotate.apply(x_NXD, cos_N1D, sin_N1D)  # type: ignore[no-untyped-call] # torch's
    return rotated_NXD


def token_nats(x_MH: Tensor, head_VH: Tensor, targets_M: Tensor) -> Tensor:
    """How unlikely each target is, [M] in fp32; the logits of all of them are never in memory at once.

    The gradient is computed with the loss, while a block of logits is at hand (Hsu et al., "Liger Kernel", 2024).
    """
    nats_M: Tensor = _TokenNats.apply(x_MH, head_VH, targets_M)  # type: ignore[no-untyped-call] # torch's
    return nats_M


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Function, x_NH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        wide_NH = x_NH.float()
        inverse_N1 = torch.rsqrt(torch.linalg.vecdot(wide_NH, wide_NH).div_(x_NH.shape[-1]).add_(eps)).unsqueeze(-1)
        normed_NH = (wide_NH * inverse_N1).to(x_NH.dtype)
        ctx.save_for_backward(normed_NH, weight_H, inverse_N1)
        return normed_NH * weight_H

    @staticmethod
    def backward(ctx: Function, *grads: Tensor) -> tuple[Tensor, None, None]:
        normed_NH, weight_H, inverse_N1 = _saved(ctx)
        grad_NH, wide_NH = (grads[0] * weight_H).float(), normed_NH.float()
        along_N1 = torch.linalg.vecdot(grad_NH, wide_NH).div_(wide_NH.shape[-1]).unsqueeze(-1)
        return grad_NH.addcmul_(wide_NH, along_N1, value=-1).mul_(inverse_N1).to(normed_NH.dtype), None, None


class _SwiGlu(Function):
    @staticmethod
    def forward(ctx: Function, gate_NI: Tensor, up_NI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NI, up_NI)
        return F.silu(gate_NI).mul_(up_NI)

    @staticmethod
    def backward(ctx: Function, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate_NI, up_NI = _saved(ctx)
        to_up_NI = F.silu(gate_NI).mul_(grads[0])
        return torch.ops.aten.silu_backward(grads[0] * up_NI, gate_NI), to_up_NI


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Function, x_NXD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_N1D, sin_N1D)
        return _turn(x_NXD, cos_N1D, sin_N1D)

    @staticmethod
    def backward(ctx: Function, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_N1D, sin_N1D = _saved(ctx)
        return _turn(grads[0], cos_N1D, -sin_N1D), None, None


def _saved(ctx: Function) -> tuple[Tensor, ...]:
    # torch's stubs take them for a tuple of one.
    saved: tuple[Tensor, ...] = ctx.saved_tensors
    return saved


def _turn(x_NXD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    half = x_NXD.shape[-1] // 2
    turned = x_NXD * cos_N1D
    turned[..., :half].addcmul_(x_NXD[..., half:], sin_N1D[..., :half], value=-1)
    turned[..., half:].addcmul_(x_NXD[..., :half], sin_N1D[..., half:])
    return turned


class _TokenNats(Function):
    @staticmethod
    def forward(ctx: Function, x_MH: Tensor, head_VH: Tensor, targets_M: Tensor) -> Tensor:
        nats, grads = [], []
        for x_BH, targets_B in zip(x_MH.split(_HEAD_ROWS), targets_M.split(_HEAD_ROWS), strict=True):
            said_BV = F.log_softmax(F.linear(x_BH, head_VH), dim=-1, dtype=torch.float32)
            targets_B1 = targets_B.unsqueeze(1)
            nats.append(-said_BV.gather(1, targets_B1).squeeze(1))
            if ctx.needs_input_grad[0]:
                wrong_BV = said_BV.exp_()
                wrong_BV.scatter_add_(1, targets_B1, wrong_BV.new_full(targets_B1.shape, -1.0))
                grads.append(wrong_BV.to(x_MH.dtype) @ head_VH)
        if grads:
            ctx.save_for_backward(torch.cat(grads))
        return torch.cat(nats)

    @staticmethod
    def backward(ctx: Function, *grads: Tensor) -> tuple[Tensor, None, None]:
        (to_x_MH,) = _saved(ctx)
        return to_x_MH * grads[0].unsqueeze(1).to(to_x_MH.dtype), None, None
