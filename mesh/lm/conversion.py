"""Turns a llama model's GGUF file into a folder that transformers, PEFT and vLLM load: bf16 safetensors + tokenizer.

Runs as a process of its own (`python -m mesh.lm.conversion GGUF FOLDER CONTEXT_TOKENS`): its memory, several times the
model, returns to the machine, and its caller need not import torch.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def convert_gguf(gguf: Path, folder: Path, *, context_tokens: int) -> None:
    """Writes the folder; the same file gives the same bytes.

    The weights are bf16: its rounding (2^-9 of a value) is far below the file's own 4-bit steps. The servers compute in
    it, so they read half the bytes and convert nothing at start-up.
    """
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = source.config.to_dict()
    # With it, every later load would look for the GGUF file.
    config.pop("quantization_config", None)
    # The meta device saves the time of making random weights that are replaced at once.
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig.from_dict(config))
    # Strict: a tensor that is still packed, or has another name, fails here instead of giving a model of noise.
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in source.state_dict().items()}
    plain.load_state_dict(rounded, strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = source.generation_config
    plain.save_pretrained(folder, max_shard_size="100GB")
    _write_tokenizer(gguf, folder, context_tokens=context_tokens)
    # safetensors writes files that only their owner may read; the server may run as another user.
    for path in folder.iterdir():
        path.chmod(0o644)


def _write_tokenizer(gguf: Path, folder: Path, *, context_tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names its pre-tokenizer `smollm`: single digits, then GPT-2's split. transformers applies only the second
    # part, which splits blank space before a digit differently from the model's training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = context_tokens
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Converts one file from the command line."""
    parser = argparse.ArgumentParser(prog="python -m mesh.lm.conversion")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("context_tokens", type=int)
    args = parser.parse_args()
    convert_gguf(args.gguf, args.folder, context_tokens=args.context_tokens)


if __name__ == "__main__":
    main()
