"""The folder that PEFT and vLLM load an adapter from: its weights, and a description of them.

PEFT: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
from collections.abc import Sequence

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def peft_config(*, base_model: str, rank: int, alpha: float, target_modules: Sequence[str]) -> bytes:
    """Returns the content of `CONFIG_FILE`.

    Args:
        base_model: Name of the base model; may be empty.
        rank: Rank of the factors.
        alpha: PEFT and vLLM scale the update by alpha / rank, and know no other strength.
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
