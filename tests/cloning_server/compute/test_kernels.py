"""Operations of a layer: their outputs, and their gradients compared with autograd's."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cloning_server.compute.kernels import (
    AttentionBackward,
    attend_by_products,
    attend_fused,
    rms_norm,
    rotate,
    swiglu,
    token_nats,
    token_nats_and_gradient,
)

HEADS, KEYS, WIDTH = 3, 7, 8
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, AttentionBackward]]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def expect(output: Tensor, inputs: Sequence[Tensor], grad: Tensor, computed: tuple[Tensor, Sequence[Tensor]]) -> None:
    """Compares a computed output and its gradients with torch's output and autograd's gradients."""
    computed_output, gradients = computed
    torch.testing.assert_close(computed_output, output.detach())
    for gradient, expected in zip(gradients, torch.autograd.grad(output, inputs, grad), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_rms_norm() -> None:
    x_NH, weight_H, grad_NH = numbers(5, 8), numbers(8, seed=1).detach(), numbers(5, 8, seed=2).detach()
    with torch.no_grad():
        normed_NH, back = rms_norm(x_NH, weight_H, 1e-5)
        computed = normed_NH, [back(grad_NH)]
    expect(functional.rms_norm(x_NH, (8,), weight_H, 1e-5), [x_NH], grad_NH, computed)


def test_swiglu() -> None:
    gate_NI, up_NI, grad_NI = numbers(5, 8), numbers(5, 8, seed=1), numbers(5, 8, seed=2).detach()
    with torch.no_grad():
        gated_NI, back = swiglu(gate_NI, up_NI)
        computed = gated_NI, back(grad_NI)
    expect(functional.silu(gate_NI) * up_NI, [gate_NI, up_NI], grad_NI, computed)


def test_the_negative_sine_rotates_back() -> None:
    x_NXD = numbers(5, 2, 8).detach()
    angles_N1D = numbers(5, 1, 4, seed=1).detach().repeat(1, 1, 2)
    rotated_NXD = rotate(x_NXD, angles_N1D.cos(), angles_N1D.sin())
    assert not torch.allclose(rotated_NXD, x_NXD)
    torch.testing.assert_close(rotate(rotated_NXD, angles_N1D.cos(), -angles_N1D.sin()), x_NXD)


@pytest.mark.parametrize("attend", [attend_by_products, attend_fused])
def test_attention(attend: Attend) -> None:
    queries, keys, values = numbers(2, HEADS, 4, WIDTH), numbers(2, HEADS, KEYS, WIDTH), numbers(2, HEADS, KEYS, WIDTH)
    bias = torch.zeros(2, 1, 4, KEYS).masked_fill(torch.ones(4, KEYS).triu(3).bool(), -torch.inf)
    grad = numbers(2, HEADS, 4, WIDTH, seed=3).detach()
    with torch.no_grad():
        attended, back = attend(queries, keys, values, bias)
        computed = attended, back(grad)
    weights = (queries @ keys.transpose(-1, -2) / WIDTH**0.5 + bias).softmax(dim=-1)
    expect(weights @ values, [queries, keys, values], grad, computed)
    with torch.inference_mode():
        # Tensors of the inference mode, as where an adapter is measured.
        measured, _ = attend(queries.clone(), keys.clone(), values.clone(), bias)
    torch.testing.assert_close(measured.clone(), attended)


def test_the_nats_of_tokens_and_the_gradient_of_their_weighted_sum() -> None:
    # More rows than one block of logits has.
    x_MH, head_VH = numbers(150, 8), numbers(30, 8, seed=1).detach()
    targets_M, weights_M = torch.arange(150) % 30, torch.linspace(0, 1, 150)
    with torch.no_grad():
        nats_M, grad_MH = token_nats_and_gradient(x_MH, head_VH, targets_M, weights_M)
        torch.testing.assert_close(token_nats(x_MH, head_VH, targets_M), nats_M)
    expected = functional.cross_entropy(x_MH @ head_VH.T, targets_M, reduction="none")
    expect(expected, [x_MH], weights_M, (nats_M, [grad_MH]))
