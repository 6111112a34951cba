"""Merges a LoRA adapter into the weights of a base model, as files: `W + alpha / rank * B A`.

Computed in fp32 and rounded once to the dtype that the file has. A file is copied, and its adapted tensors overwritten
in place, so that no more than one of them is in memory, whatever the size of the model. Knows nothing of torch.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import deserialize

from mesh.errors import AdapterCorrupt, AdapterIncompatible
from mesh.lm.digests import weight_files

# Increased when the same base weights and tutor give other weights than before: all that belongs to them is outdated
# then.
MERGE_VERSION = 1

# PEFT's names, such as `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# What transformers and vLLM read beside the weights.
_OTHER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")

_Matrix = npt.NDArray[np.float32]
# Called with the tensors that are merged and their number in all.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a tensor is: its file, its first byte there, and what it is."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * (4 if self.dtype == "F32" else 2)


def merge_adapter(
    base_folder: Path,
    adapter: bytes,
    folder: Path,
    *,
    scaling: float,
    on_progress: OnProgress = lambda _done, _of: None,
) -> None:
    """Writes a folder with the merged weights, and the base model's configuration and tokenizer.

    Args:
        base_folder: The base model in the transformers layout.
        adapter: An inspected adapter's safetensors file, with PEFT's names.
        folder: Where to; created, must not exist.
        scaling: Multiplies the product of the factors.
        on_progress: Called after each merged tensor.

    Raises:
        AdapterIncompatible: A module of the adapter is not in the base model, or has another shape or a packed format
            there.
        AdapterCorrupt: A merged weight is not a finite number.
        OSError: A file can't be read or written.
    """
    factors = _factors_of(adapter)
    places = {name: place for path in weight_files(base_folder) for name, place in _places_in(path).items()}
    for module, pair in factors.items():
        _require_fit(module, pair, places.get(f"{module}.weight"))
    folder.mkdir(parents=True)
    done = 0
    for source in weight_files(base_folder):
        target = folder / source.name
        shutil.copyfile(source, target)
        with target.open("r+b") as file:
            for module, (down_RI, up_OR) in factors.items():
                place = places[f"{module}.weight"]
                if place.path == source:
                    # What overflows is found in the merged tensor.
                    with np.errstate(over="ignore", invalid="ignore"):
                        change_OI = np.float32(scaling) * (up_OR @ down_RI)
                        _merge_tensor(file, place, module=module, change_OI=change_OI)
                    done += 1
                    on_progress(done, len(factors))
    _copy_other_files(base_folder, folder)


def _factors_of(adapter: bytes) -> dict[str, tuple[_Matrix, _Matrix]]:
    """Returns the factors A [rank, in] and B [out, rank] of each module."""
    sides: dict[str, dict[str, _Matrix]] = {}
    for name, tensor in deserialize(adapter):  # type: ignore[no-untyped-call]
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            raise AdapterIncompatible(f"{name} is not named as PEFT names a factor of a causal language model")
        values = _to_float32(bytes(tensor["data"]), tensor["dtype"]).reshape(tensor["shape"])
        sides.setdefault(factor["module"], {})[factor["side"]] = values
    return {module: (pair["A"], pair["B"]) for module, pair in sorted(sides.items())}


def _places_in(path: Path) -> Mapping[str, _Place]:
    """Reads the header of a safetensors file (https://github.com/huggingface/safetensors#format)."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    return {
        name: _Place(
            path=path,
            offset=8 + header_bytes + entry["data_offsets"][0],
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
        )
        for name, entry in header.items()
    }


def _require_fit(module: str, pair: tuple[_Matrix, _Matrix], place: _Place | None) -> None:
    if place is None:
        raise AdapterIncompatible(f"the base model has no {module}")
    if place.dtype not in {"F32", "F16", "BF16"}:
        raise AdapterIncompatible(f"the base model stores {module} as {place.dtype}, into which nothing can be merged")
    shape = (pair[1].shape[0], pair[0].shape[1])
    if place.shape != shape:
        raise AdapterIncompatible(f"{module} has the shape {place.shape}, and its factors give {shape}")


def _merge_tensor(file: BinaryIO, place: _Place, *, module: str, change_OI: _Matrix) -> None:
    file.seek(place.offset)
    change_OI += _to_float32(file.read(place.size_bytes), place.dtype).reshape(place.shape)
    content = _from_float32(change_OI, place.dtype)
    if not np.isfinite(_to_float32(content, place.dtype)).all():
        raise AdapterCorrupt(f"the merged {module} has a value that is not finite")
    file.seek(place.offset)
    file.write(content)


def _to_float32(content: bytes, dtype: str) -> _Matrix:
    if dtype == "BF16":
        # The upper half of a float32.
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(content, "<f4" if dtype == "F32" else "<f2").astype("<f4")


def _from_float32(values: _Matrix, dtype: str) -> bytes:
    """Rounds to the nearest number of the dtype, and to the even one of two that are as near."""
    if dtype == "F32":
        return values.tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = values.view("<u4")
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded.tobytes()


def _copy_other_files(base_folder: Path, folder: Path) -> None:
    for pattern in _OTHER_FILES:
        for path in base_folder.glob(pattern):
            # The record of a converted base model (`mesh.lm.base_files`) is not that of what was merged.
            if path.name != "aivo.json":
                shutil.copyfile(path, folder / path.name)
