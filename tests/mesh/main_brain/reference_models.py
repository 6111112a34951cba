"""Models that transformers loads, and what they compute."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

TOKENS_BT = torch.tensor([[5, 60, 7, 81, 9, 4]])


def logits_of(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        logits_BTV: Tensor = model(TOKENS_BT).logits.float()
    return logits_BTV


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model
