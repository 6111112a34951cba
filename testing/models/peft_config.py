"""PEFT's description of an adapter, for the tests and benchmarks that compare with PEFT and vLLM."""

import json

from mesh.lm.lora import LoraSpec


def to_peft_config(spec: LoraSpec, *, base_model: str) -> bytes:
    """Returns the `adapter_config.json` that PEFT and vLLM expect beside an adapter's file."""
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
