"""A Main Brain in memory: loaded and frozen, in the precision that this machine computes fastest."""

import logging
from collections.abc import Iterator, Sequence
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
from mesh.main_brain.files import MainBrainFiles, fetch_main_brain
from mesh.main_brain.roles import PACKAGED_ROLES

Quantization = Literal["none", "4bit", "8bit"]
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Parts of the RuntimeError that torch raises when the machine, not the GPU, is out of memory; it has no class for that.
_CPU_MEMORY_SIGNS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model with its tutor, ready to run: in eval mode, and no parameter requires a gradient.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer, with a chat template.
        name: The name it was loaded by; the fallback's name if the fallback was loaded.
        main_brain: Its files and roles.
        device: The device that holds it.
        dtype: The precision that it computes in.
        quantization: The format of its linear weights.
        fallback_from: The requested name, if a fallback was loaded in its place.
        fallback_reason: Why the requested model could not be loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    main_brain: MainBrainFiles
    device: torch.device
    dtype: torch.dtype
    quantization: Quantization
    fallback_from: str | None = None
    fallback_reason: str | None = None

    @property
    def digest(self) -> str:
        """Identity of the Main Brain, 64 hex digits; see `MainBrainFiles.digest`."""
        return self.main_brain.digest

    @property
    def unrepeated_run(self) -> int:
        """The run of tokens that the Main Brain's serving profile does not repeat; 0 for no such rule."""
        serving = self.main_brain.serving
        return serving.unrepeated_run if serving else 0


def load_base(
    name: str,
    *,
    cache_dir: Path,
    roles_dirs: Sequence[Path] = (PACKAGED_ROLES,),
    device: str = "auto",
    dtype: DtypeName = "auto",
    quantization: Quantization = "none",
    allow_fallback: bool = False,
) -> BaseModel:
    """Loads a base model with its tutor; fetches and merges first what is missing.

    Args:
        name: A name of the catalogue, a local folder, or a repository of the Hugging Face hub.
        cache_dir: See `mesh.main_brain.files.fetch_main_brain`.
        roles_dirs: Where to look for roles; none give the plain base model, on which a tutor is trained.
        device: `auto` (cuda if there is one, else cpu), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`: bf16 where the device computes it natively, else fp16 on cuda and fp32 on cpu.
        quantization: `4bit` is NF4 with double quantisation (Dettmers et al., "QLoRA", 2023), `8bit` is LLM.int8()
            (Dettmers et al., 2022); both of bitsandbytes, on cuda and cpu.
        allow_fallback: Load the catalogue's fallback, and its fallback, when a model can't be loaded.

    Raises:
        BaseModelOutOfMemory: If it does not fit the device.
        BaseModelUnavailable: If it can't be fetched or read.
    """
    requested_name, reason = name, None
    while True:
        try:
            files = fetch_main_brain(name, cache_dir, roles_dirs)
            base = load_files(files, device=device, dtype=dtype, quantization=quantization)
        except BaseModelUnavailable as error:
            fallback_name = find_entry(name).fallback
            if not allow_fallback or fallback_name is None:
                raise
            # The first reason is the one that an operator can act on.
            name, reason = fallback_name, reason or str(error)
        else:
            return base if reason is None else replace(base, fallback_from=requested_name, fallback_reason=reason)


def load_files(
    files: MainBrainFiles, *, device: str = "auto", dtype: DtypeName = "auto", quantization: Quantization = "none"
) -> BaseModel:
    """Loads a Main Brain from its files; arguments and errors are those of `load_base`."""
    target = torch.device(pick_device() if device == "auto" else device)
    precision = pick_dtype(target) if dtype == "auto" else _DTYPES[dtype]
    tokenizer = _read_tokenizer(files)
    with _typed_faults(files.name), _no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(
            files.path,
            dtype=precision,
            device_map={"": target},
            quantization_config=_quantization_config(quantization, precision),
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
    model.eval().requires_grad_(requires_grad=False)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        name=files.name,
        main_brain=files,
        device=target,
        dtype=precision,
        quantization=quantization,
    )


def pick_device() -> str:
    """Returns the device that `auto` means on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device: torch.device) -> torch.dtype:
    """Returns the precision that `auto` means on a device: bf16 if the hardware multiplies it, else its fastest."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Without AMX or AVX512-BF16 a CPU emulates bf16 by way of fp32, slower than fp32 itself.
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def _read_tokenizer(files: MainBrainFiles) -> PreTrainedTokenizerBase:
    with _typed_faults(files.name):
        tokenizer = AutoTokenizer.from_pretrained(files.path, local_files_only=True)
    if not tokenizer.chat_template:
        raise BaseModelUnavailable(
            f"{files.name}: its tokenizer has no chat template; choose an instruction-tuned base model"
        )
    if tokenizer.pad_token_id is None:
        # Llama's and Mistral's have none. Padding is masked, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "none":
        return None
    if quantization == "8bit":
        # At every product it warns of the cast to fp16, which is part of the method.
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
    """Translates errors of torch, transformers and the file system into the two that a server survives."""
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
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
