"""A base model in memory: loaded, frozen, in the precision that this machine computes fastest."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from mesh.errors import BaseModelOutOfMemory, BaseModelUnavailable
from mesh.lm.catalogue import find_entry
from mesh.lm.weights import BaseModelFiles, fetch

Quantization = Literal["none", "4bit", "8bit"]
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# What torch says in a RuntimeError when the machine, not the graphics card, is out of memory; it has no class for it.
_CPU_MEMORY_SIGNS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model that is ready to run: in eval mode, no parameter requires a gradient.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer, with a chat template.
        name: The name it was loaded by; the fallback's, if that was loaded.
        digest: sha256 over its weight files, 64 hex digits.
        device: Where it is.
        dtype: What it computes in.
        quantization: How its linear weights are held.
        fallback_from: The name that was asked for, if another model stands in for it.
        fallback_reason: Why that one could not be loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    digest: str
    device: torch.device
    dtype: torch.dtype
    quantization: Quantization
    fallback_from: str | None = None
    fallback_reason: str | None = None


def load_base(
    name: str,
    *,
    cache_dir: Path,
    device: str = "auto",
    dtype: DtypeName = "auto",
    quantization: Quantization = "none",
    allow_fallback: bool = False,
) -> BaseModel:
    """Loads a base model, fetching it first if need be.

    Args:
        name: A name of the catalogue, a local folder, or a repository of the Hugging Face hub.
        cache_dir: See `mesh.lm.weights.fetch`.
        device: `auto` (cuda if there is one, else cpu), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`: bf16 where the device computes it natively, else fp16 on cuda and fp32 on cpu.
        quantization: `4bit` is NF4 with double quantisation (Dettmers et al., "QLoRA", 2023), `8bit` is LLM.int8()
            (Dettmers et al., 2022); both of bitsandbytes, on cuda and cpu.
        allow_fallback: Load the catalogue's fallback, and its fallback, when a model can't be loaded.

    Raises:
        BaseModelOutOfMemory: If it does not fit the device.
        BaseModelUnavailable: If it can't be had or read.
    """
    place = torch.device(pick_device() if device == "auto" else device)
    kind = pick_dtype(place) if dtype == "auto" else _DTYPES[dtype]
    wanted, reason = name, None
    while True:
        try:
            base = _load(fetch(name, cache_dir), place, dtype=kind, quantization=quantization)
        except BaseModelUnavailable as error:
            stand_in = find_entry(name).fallback
            if not allow_fallback or stand_in is None:
                raise
            # The first reason is the one that an operator can act on.
            name, reason = stand_in, reason or str(error)
        else:
            return base if reason is None else replace(base, fallback_from=wanted, fallback_reason=reason)


def pick_device() -> str:
    """The device that `auto` means on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device: torch.device) -> torch.dtype:
    """What `auto` computes in on a device: bf16 where the hardware multiplies it, else what it does best."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Without AMX or AVX512-BF16 a CPU emulates bf16 by way of fp32, slower than fp32 itself.
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def resident_bytes(model: PreTrainedModel) -> int:
    """Bytes that a model's parameters and buffers take, each tensor counted once."""
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return sum(one.nbytes for one in tensors.values())


def _load(files: BaseModelFiles, place: torch.device, *, dtype: torch.dtype, quantization: Quantization) -> BaseModel:
    tokenizer = _read_tokenizer(files)
    with _typed_faults(files.name), _no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(
            files.path,
            dtype=dtype,
            device_map={"": place},
            quantization_config=_quantization_config(quantization, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
    model.eval().requires_grad_(requires_grad=False)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        name=files.name,
        digest=files.digest,
        device=place,
        dtype=dtype,
        quantization=quantization,
    )


def _read_tokenizer(files: BaseModelFiles) -> PreTrainedTokenizerBase:
    with _typed_faults(files.name):
        tokenizer = AutoTokenizer.from_pretrained(files.path, local_files_only=True)
    if not tokenizer.chat_template:
        raise BaseModelUnavailable(f"{files.name}: its tokenizer has no chat template")
    if tokenizer.pad_token_id is None:
        # Llama's and Mistral's have none; what is padded is masked, so that any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "none":
        return None
    if quantization == "8bit":
        # It warns of the cast to fp16, which the method has by design, in every product of every token.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


@contextmanager
def _typed_faults(name: str) -> Iterator[None]:
    """Turns what torch, transformers and the file system raise into the two faults that a server can stay up with."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BaseModelOutOfMemory(f"{name} does not fit the memory of the device") from error
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        if any(sign in str(error) for sign in _CPU_MEMORY_SIGNS):
            raise BaseModelOutOfMemory(f"{name} does not fit the memory of the machine") from error
        raise BaseModelUnavailable(f"{name} could not be read: {error}") from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _CPU_MEMORY_SIGNS):
            raise
        raise BaseModelOutOfMemory(f"{name} does not fit the memory of the machine") from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers' bars out of a server's log."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
