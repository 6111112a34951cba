"""The file that PEFT and vLLM expect beside an adapter's weights, `adapter_config.json`."""

import json
from collections.abc import Sequence


def peft_config(*, base_model: str, rank: int, alpha: float, target_modules: Sequence[str]) -> bytes:
    """Returns the file's content.

    Args:
        base_model: Name of the base model; may be empty.
        rank: Rank of the factors.
        alpha: PEFT and vLLM scale the update by alpha / rank.
        target_modules: Last names of the adapted modules.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(target_modules),
        "bias": "none",
        "inference_mode": True,
    }
    return json.dumps(config, indent=2).encode()
