"""Small base models with random weights, for every architecture that the decoder supports. They compute fast."""

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
    """Returns a model in fp32 and eval mode. All its weights, also norms and biases, follow from the seed alone."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            # As in trained models, products keep the size of their input, and norms are about one.
            weight.copy_(1 + 0.2 * noise if "norm" in name else noise / weight.shape[-1] ** 0.5)
    model.eval().requires_grad_(requires_grad=False)
    return model


def write_small_llama(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Writes a small base model with a real tokenizer and chat template to a folder, and returns the folder."""
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
