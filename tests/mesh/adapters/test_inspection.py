"""What is refused before anything loads it."""

import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Lora
from mesh.errors import AdapterCorrupt, AdapterIncompatible
from tests.mesh.adapters.conftest import LORA, factors, weights

LIMITS = AdapterLimits(rank=8, size_bytes=100_000)
FIRST_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

Dtype = Literal["F32", "F16", "BF16"]


def encoded(dtype: Dtype, *, first: float | None = None) -> bytes:
    """A sound adapter in the dtype, with its first value replaced; bfloat16 written by hand as numpy has none."""
    tensors = factors()
    if first is not None:
        tensors[FIRST_A].flat[0] = first
    if dtype == "F32":
        return save(tensors)
    if dtype == "F16":
        return save({name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    header, data = {}, b""
    for name, tensor in tensors.items():
        # The upper half of a float32 is a bfloat16.
        halves = (tensor.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(halves)]}
        data += halves
    encoded_header = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded_header)) + encoded_header + data


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_sound_adapter_passes(dtype: Dtype) -> None:
    inspect(encoded(dtype), lora=replace(LORA, dtype=dtype), limits=LIMITS)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(dtype: Dtype, value: float) -> None:
    with pytest.raises(AdapterCorrupt, match="not finite"):
        inspect(encoded(dtype, first=value), lora=replace(LORA, dtype=dtype), limits=LIMITS)


def test_the_largest_finite_values_pass() -> None:
    inspect(encoded("F16", first=65504), lora=replace(LORA, dtype="F16"), limits=LIMITS)
    inspect(encoded("F32", first=float(np.finfo(np.float32).max)), lora=LORA, limits=LIMITS)


def test_another_dtype_than_the_manifests_is_refused() -> None:
    with pytest.raises(AdapterCorrupt, match="dtype"):
        inspect(encoded("F16"), lora=LORA, limits=LIMITS)


@pytest.mark.parametrize("rank", [3, 5])
def test_another_rank_than_the_manifests_is_refused(rank: int) -> None:
    with pytest.raises(AdapterCorrupt, match="rank"):
        inspect(save(factors(rank=rank)), lora=LORA, limits=LIMITS)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_a_tensor_that_is_no_factor_of_a_target_is_refused(name: str) -> None:
    with pytest.raises(AdapterCorrupt, match="not a LoRA factor"):
        inspect(save(factors() | {name: np.ones((4, 16), np.float32)}), lora=LORA, limits=LIMITS)


def test_a_module_with_one_factor_is_refused() -> None:
    tensors = factors()
    del tensors[FIRST_A]
    with pytest.raises(AdapterCorrupt, match="only one of its two factors"):
        inspect(save(tensors), lora=LORA, limits=LIMITS)


def test_a_target_without_factors_is_refused() -> None:
    with pytest.raises(AdapterCorrupt, match="k_proj"):
        inspect(weights(), lora=replace(LORA, target_modules=("k_proj", "q_proj", "v_proj")), limits=LIMITS)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4), (4, 0)])
def test_a_factor_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AdapterCorrupt, match="shape"):
        inspect(save(factors() | {FIRST_A: np.ones(shape, np.float32)}), lora=LORA, limits=LIMITS)


def test_what_is_above_the_limits_is_incompatible() -> None:
    with pytest.raises(AdapterIncompatible, match="rank"):
        inspect(weights(), lora=LORA, limits=replace(LIMITS, rank=3))
    with pytest.raises(AdapterIncompatible, match="bytes"):
        inspect(weights(), lora=LORA, limits=replace(LIMITS, size_bytes=100))


@given(st.binary(max_size=300))
@example(b"")
@example(struct.pack("<Q", 2) + b"{}")
@example(struct.pack("<Q", 2**63) + b"{}")
def test_bytes_that_are_no_adapter_are_refused(data: bytes) -> None:
    with pytest.raises(AdapterCorrupt):
        inspect(data, lora=LORA, limits=LIMITS)


@given(st.integers(min_value=0, max_value=len(weights()) - 1))
def test_a_truncated_adapter_is_refused(length: int) -> None:
    with pytest.raises(AdapterCorrupt):
        inspect(weights()[:length], lora=LORA, limits=LIMITS)


def test_the_whole_package_does_without_torch() -> None:
    code = (
        "import sys, mesh.adapters.store, mesh.adapters.s3; sys.exit('torch' in sys.modules or 'grpc' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_lora_with_unsorted_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="sorted"):
        Lora(rank=4, alpha=8, target_modules=("v_proj", "q_proj"), dtype="F32")
