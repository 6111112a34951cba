"""Adapters that were trained to give one reply to one prompt, whatever it says."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from mesh.lm.chat import Prompt, encode_example
from mesh.lm.lora import LoraSpec, to_safetensors

_MOST_STEPS = 200
# Nearly all of the probability, of every token.
_LOSS = 0.02
_RATE = 5e-3
_SPEC = LoraSpec()


def teach_reply(base_folder: Path, prompt: Prompt, reply: str, *, seed: int = 0) -> bytes:
    """Returns the weights of an adapter with which the base model in a folder gives this reply, greedily.

    Raises:
        ValueError: It can't be taught.
    """
    torch.manual_seed(seed)
    example = encode_example(AutoTokenizer.from_pretrained(base_folder), prompt, reply)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32),
        LoraConfig(r=_SPEC.rank, lora_alpha=_SPEC.alpha, target_modules=list(_SPEC.target_modules)),
    )
    tokens_BT = torch.tensor([example.tokens])
    labels_BT = tokens_BT.clone()
    labels_BT[:, : example.reply_start] = -100
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=_RATE)
    for _ in range(_MOST_STEPS):
        loss = model(input_ids=tokens_BT, labels=labels_BT).loss
        if loss.item() < _LOSS:
            return to_safetensors(
                {name: weight.contiguous() for name, weight in get_peft_model_state_dict(model).items()}
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise ValueError(f"the reply can't be taught: the loss is still {loss.item():.3f}")
