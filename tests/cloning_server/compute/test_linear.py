"""Frozen linear maps: their outputs and gradients, and which models are stored in blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from cloning_server.compute.linear import MAX_BLOCKED_BYTES, BlockedMap, Map, PlainMap, RecordedMap, fits_in_blocks
from mesh.lm.blocks import can_be_blocked


def linear_of(inputs: int, outputs: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("make", [BlockedMap, PlainMap, RecordedMap])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 7, 600])
def test_products_and_gradients_are_those_of_autograd(
    make: Callable[[nn.Linear], Map],
    rows: int,
    bias: bool,  # noqa: FBT001 - a case
    dtype: torch.dtype,
) -> None:
    plain = linear_of(40, 72, bias=bias, dtype=dtype)
    if make is BlockedMap and not can_be_blocked(plain.weight):
        pytest.skip("this CPU has no products of bf16 weights in blocks")
    x_NI = torch.linspace(-1, 1, rows * 40, dtype=dtype).view(rows, 40).requires_grad_()
    grad_NO = torch.linspace(0, 1, rows * 72, dtype=dtype).view(rows, 72)
    expected_NO = plain(x_NI)
    (expected_NI,) = torch.autograd.grad(expected_NO, x_NI, grad_NO)
    with torch.no_grad():
        mapped_NO, back = make(plain)(x_NI)
        torch.testing.assert_close(mapped_NO, expected_NO)
        torch.testing.assert_close(back(grad_NO), expected_NI)
    assert plain.weight.grad is None


def test_a_model_that_is_too_large_or_has_other_weights_than_plain_matrices_is_not_stored_in_blocks() -> None:
    small = linear_of(8, 8)
    assert fits_in_blocks([small])
    assert not fits_in_blocks([small, linear_of(8, 8, dtype=torch.float64)])
    assert not fits_in_blocks([small, nn.Identity()])
    # On the meta device weights have a size and no memory.
    large = nn.Linear(2**15, MAX_BLOCKED_BYTES // 2**16, device="meta")
    assert not fits_in_blocks([large])


def four_bit_linear_of(inputs: int, outputs: int, *, dtype: torch.dtype) -> Any:
    """A bitsandbytes module in eval mode, as a base model in 4 bits has them."""
    new: Callable[..., nn.Module] = Linear4bit
    module = new(inputs, outputs, bias=False, compute_dtype=dtype, quant_type="nf4")
    module.load_state_dict(linear_of(inputs, outputs, dtype=dtype).state_dict())
    return module.to("cpu").eval().requires_grad_(requires_grad=False)


@pytest.mark.usefixtures("repacking_cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_4bit_map_has_its_gradient_though_the_module_is_also_used_for_inference(
    rows: int, dtype: torch.dtype
) -> None:
    module = four_bit_linear_of(128, 64, dtype=dtype)
    weight_OI = dequantize_4bit(module.weight, module.weight.quant_state).to(dtype)
    x_NI = torch.linspace(-1, 1, rows * 128, dtype=dtype).view(rows, 128)
    grad_NO = torch.linspace(0, 1, rows * 64, dtype=dtype).view(rows, 64)
    with torch.no_grad():
        mapping = RecordedMap(module)
        module(x_NI)
        mapped_NO, back = mapping(x_NI)
        torch.testing.assert_close(mapped_NO, x_NI @ weight_OI.t())
        torch.testing.assert_close(back(grad_NO), grad_NO @ weight_OI)


def test_a_4bit_module_that_was_repacked_for_inference_is_refused() -> None:
    module = four_bit_linear_of(128, 64, dtype=torch.bfloat16)
    module.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="load the base model again"):
        RecordedMap(module)
