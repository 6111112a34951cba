"""Turns a llama model's GGUF file into a folder that transformers, PEFT and vLLM load: bf16 safetensors + tokenizer.

Runs as a process of its own (`python -m mesh.lm.conversion GGUF FOLDER CONTEXT_TOKENS`), so that the memory it takes,
several times the model, goes back to the machine, and so that whoever fetches need not import torch.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def convert_gguf(gguf: Path, folder: Path, *, context_tokens: int) -> None:
    """Writes the folder; the same file gives the same bytes.

    bf16 because its rounding (2^-9 of a value) is far below the 4-bit steps already taken, and it is what the servers
    compute in: half the bytes to read, nothing to convert at start-up.
    """
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    facts = read.config.to_dict()
    # Left in, it would have every later load look for the GGUF file.
    facts.pop("quantization_config", None)
    # On the meta device, so that no time goes into random weights that are replaced at once.
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig.from_dict(facts))
    # Strict: a tensor that the reader kept packed or named otherwise is a failure here, not a model of noise.
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
    plain.load_state_dict(rounded, strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder, max_shard_size="100GB")
    _write_tokenizer(gguf, folder, context_tokens=context_tokens)
    # safetensors writes files that only their owner reads; a server may run as another user than the one who fetched.
    for path in folder.iterdir():
        path.chmod(0o644)


def _write_tokenizer(gguf: Path, folder: Path, *, context_tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names its pre-tokenizer `smollm`: each digit by itself, then GPT-2's split. transformers reads the second
    # half alone, which splits blank space before a digit otherwise than in the model's training.
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
    given = parser.parse_args()
    convert_gguf(given.gguf, given.folder, context_tokens=given.context_tokens)


if __name__ == "__main__":
    main()
