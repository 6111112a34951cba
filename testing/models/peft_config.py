"""PEFT's description of an adapter, for the tests and benchmarks that compare with PEFT and vLLM."""

from mesh.adapters.peft_config import peft_config
from mesh.lm.lora import LoraSpec


def to_peft_config(spec: LoraSpec, *, base_model: str) -> bytes:
    """Returns the `adapter_config.json` that PEFT and vLLM expect beside an adapter's file."""
    return peft_config(base_model=base_model, rank=spec.rank, alpha=spec.alpha, target_modules=spec.target_modules)
