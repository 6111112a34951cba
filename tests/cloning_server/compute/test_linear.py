"""Frozen linear maps: what they compute, their way back, and which models are kept in blocks."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cloning_server.compute.linear import MOST_BYTES, BlockedMap, Map, PlainMap, RecordedMap, are_kept_in_blocks


def linear_of(inputs: int, outputs: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("make", [BlockedMap, PlainMap, RecordedMap])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 7, 600])
def test_products_and_gradients_are_those_that_autograd_finds(
    make: Callable[[nn.Linear], Map],
    rows: int,
    bias: bool,  # noqa: FBT001 - a case
) -> None:
    plain = linear_of(40, 72, bias=bias)
    x_NI = torch.linspace(-1, 1, rows * 40).view(rows, 40).requires_grad_()
    grad_NO = torch.linspace(0, 1, rows * 72).view(rows, 72)
    expected_NO = plain(x_NI)
    (expected_NI,) = torch.autograd.grad(expected_NO, x_NI, grad_NO)
    with torch.no_grad():
        mapped_NO, back = make(plain)(x_NI)
        torch.testing.assert_close(mapped_NO, expected_NO)
        torch.testing.assert_close(back(grad_NO), expected_NI)
    assert plain.weight.grad is None


def test_a_model_whose_copies_would_fill_the_memory_or_whose_weights_are_no_matrices_stays_as_it_is() -> None:
    small = linear_of(8, 8)
    assert are_kept_in_blocks([small])
    assert not are_kept_in_blocks([small, linear_of(8, 8, dtype=torch.float64)])
    assert not are_kept_in_blocks([small, nn.Identity()])
    # On the meta device weights have a size and no memory.
    large = nn.Linear(2**15, MOST_BYTES // 2**16, device="meta")
    assert not are_kept_in_blocks([large])
