"""Inspection of an adapter's weights before they are loaded.

Accepts only safetensors: the format holds numbers, so bytes from a bucket cannot run code, as a pickle could. Knows
nothing of torch or of the base model's layers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np
from safetensors import SafetensorError, deserialize

from mesh.adapters.manifest import Lora
from mesh.errors import AdapterCorrupt, AdapterIncompatible

# PEFT's names, such as `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+\.(?P<target>[^.]+))\.lora_(?P<side>[AB])\.weight")

# A float whose exponent bits are all ones is an infinity or a NaN. Testing the bits also works for bfloat16, which
# numpy lacks, and needs no float copy of the weights.
_EXPONENT_BITS = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    """The largest adapter that is stored and served.

    Attributes:
        rank: Highest rank; it sets the size of a serving engine's slots.
        size_bytes: Largest weights file; larger files are not downloaded.
    """

    rank: int = 64
    # A rank-64 adapter on the attention projections of a 7B model in fp32 has about 210 MB.
    size_bytes: int = 256 * 1024 * 1024


class _Tensor(TypedDict):
    dtype: str
    shape: list[int]
    data: bytearray


def inspect(weights: bytes, *, lora: Lora, limits: AdapterLimits) -> None:
    """Returns if the bytes are a valid LoRA adapter of the given shape.

    Every tensor is a factor A [rank, in] or B [out, rank] of a target module, named as PEFT does, each module has both
    factors, every target module occurs, all tensors have the manifest's dtype, and every value is finite.

    Raises:
        AdapterIncompatible: The rank or the size is above the limits.
        AdapterCorrupt: Anything else is wrong; the message names the tensor.
    """
    if lora.rank > limits.rank:
        raise AdapterIncompatible(f"rank {lora.rank} is above the limit of {limits.rank}")
    if len(weights) > limits.size_bytes:
        raise AdapterIncompatible(f"{len(weights)} bytes are above the limit of {limits.size_bytes}")
    tensors = _parse(weights)
    _require_factors(tensors, lora=lora)
    for name, tensor in tensors.items():
        _require_finite(name, tensor)


def _parse(weights: bytes) -> dict[str, _Tensor]:
    try:
        # The stub of `deserialize` has no types.
        return dict(cast("list[tuple[str, _Tensor]]", deserialize(weights)))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise AdapterCorrupt(f"the weights are not a safetensors file: {error}") from None


def _require_factors(tensors: Mapping[str, _Tensor], *, lora: Lora) -> None:
    sides: dict[str, set[str]] = {}
    targets = set()
    for name, tensor in tensors.items():
        factor = _FACTOR.fullmatch(name)
        if factor is None or factor["target"] not in lora.target_modules:
            raise AdapterCorrupt(f"tensor {name} is not a LoRA factor of {', '.join(lora.target_modules)}")
        if tensor["dtype"] != lora.dtype:
            raise AdapterCorrupt(f"tensor {name} has dtype {tensor['dtype']}, not {lora.dtype}")
        shape = tensor["shape"]
        if len(shape) != 2 or 0 in shape or shape[0 if factor["side"] == "A" else 1] != lora.rank:
            raise AdapterCorrupt(f"tensor {name} has shape {shape}, which does not fit rank {lora.rank}")
        sides.setdefault(factor["module"], set()).add(factor["side"])
        targets.add(factor["target"])
    if incomplete_modules := [module for module, factors in sides.items() if len(factors) == 1]:
        raise AdapterCorrupt(f"module {min(incomplete_modules)} has only one of its two factors")
    if missing_targets := set(lora.target_modules) - targets:
        raise AdapterCorrupt(f"no factor for target module {min(missing_targets)}")


def _require_finite(name: str, tensor: _Tensor) -> None:
    unsigned, exponent = _EXPONENT_BITS[tensor["dtype"]]
    values = np.frombuffer(tensor["data"], dtype=unsigned)
    if np.any((values & exponent) == exponent):
        raise AdapterCorrupt(f"tensor {name} has a value that is not finite")
