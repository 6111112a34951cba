"""One student's LoRA adapter as it is kept: its shape and its file.

The names of the tensors are those of PEFT's files, so that PEFT and vLLM read what is written here. LoRA: Hu et al.,
"LoRA: Low-Rank Adaptation of Large Language Models" (2021). Knows nothing of students, versions or stores, and does
without PEFT, whose import takes seconds that serving does not have.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mesh.errors import AdapterCorrupt


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """The shape of an adapter.

    Attributes:
        rank: Inner dimension of the two factors.
        alpha: The update is scaled by alpha / rank.
        target_modules: Names of the linear modules that have one, in every layer.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")

    @property
    def scaling(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / self.rank


def to_safetensors(state: Mapping[str, Tensor]) -> bytes:
    """An adapter's file, `adapter_model.safetensors` to PEFT; the same weights give the same bytes."""
    return safetensors.torch.save(dict(state), metadata={"format": "pt"})


def from_safetensors(content: bytes) -> dict[str, Tensor]:
    """The weights in an adapter's file.

    Raises:
        AdapterCorrupt: If it is no safetensors file, or holds a number that is not finite.
    """
    try:
        state = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterCorrupt("the adapter is not a safetensors file") from error
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise AdapterCorrupt(f"the adapter's {name} holds what is not a finite number")
    return state


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or NaN; ten times faster than by `torch.isfinite`."""
    # A NaN anywhere makes both NaN.
    lowest, highest = tensor.aminmax()
    return math.isfinite(lowest) and math.isfinite(highest)


def to_peft_config(spec: LoraSpec, *, base_model: str) -> bytes:
    """The `adapter_config.json` that PEFT and vLLM want beside an adapter's file."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(spec.target_modules),
        "bias": "none",
        "inference_mode": True,
    }
    return json.dumps(config, indent=2).encode()
