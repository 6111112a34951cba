"""Small base models with random weights: of every arithmetic that the decoder knows, and computed in no time."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

VOCABULARY = 320


def small_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model in fp32 and eval mode; its weights, norms and biases among them, are of the seed alone."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            fresh = torch.randn(weight.shape, generator=generator)
            # As trained models are: products keep the size of what they are given, norms are about one.
            weight.copy_(1 + 0.2 * fresh if "norm" in name else fresh / weight.shape[-1] ** 0.5)
    model.eval().requires_grad_(requires_grad=False)
    return model


def write_small_llama(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A base model to load from a folder, that reads and writes with a real tokenizer and chat template."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = small_model(config)
    assert isinstance(model, LlamaForCausalLM)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
