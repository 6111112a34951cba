"""The baseline of fine-tuning: the usual training loop with transformers and PEFT.

The base model has the dtype that AIVO uses; adapters are fp32. Batches are random and padded on the right to their
longest example, labels are -100 outside the replies, attention and loss are those of transformers. Optimizer, schedule
and clipping are those of AIVO, so that both take equal steps.
"""

import random
import time
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from cloning_server.learning.optimizer import MAX_GRADIENT_NORM, rate
from cloning_server.training import TrainingPlan
from mesh.lm.chat import Example
from mesh.main_brain.base import BaseModel

BATCH = 8


def fine_tune(
    base: BaseModel, examples: Sequence[Example], *, plan: TrainingPlan, start: dict[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """Trains an adapter from given initial weights.

    Args:
        base: The base model; wrapped while training, and unwrapped at the end.
        examples: The training examples.
        plan: Rank, epochs, learning rate and seed.
        start: Initial adapter weights, by PEFT's names.

    Returns:
        The final weights by the same names, and the seconds of all steps.
    """
    model, weights = _wrap(base, plan=plan, start=start)
    steps = plan.epochs * -(-len(examples) // BATCH)
    optimizer = torch.optim.AdamW(list(weights.values()), lr=plan.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    draws = random.Random(plan.seed)
    started_at = time.perf_counter()
    for _ in range(plan.epochs):
        shuffled = draws.sample(list(examples), len(examples))
        for first in range(0, len(shuffled), BATCH):
            loss = model(**_collate(shuffled[first : first + BATCH], base)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - started_at
    state = {name: weights[name].detach().cpu().clone() for name in start}
    model.unload()
    return state, seconds


def _wrap(
    base: BaseModel, *, plan: TrainingPlan, start: dict[str, Tensor]
) -> tuple[PeftModel, dict[str, torch.nn.Parameter]]:
    """Adds an adapter to the base model; returns the PEFT model and the adapter's weights by name."""
    config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, target_modules=list(plan.target_modules))
    model = get_peft_model(base.model, config)
    assert isinstance(model, PeftModel)
    weights = {
        name.replace(".default", ""): weight for name, weight in model.named_parameters() if weight.requires_grad
    }
    for name, tensor in start.items():
        weights[name].data.copy_(tensor)
    return model, weights


def _collate(examples: Sequence[Example], base: BaseModel) -> dict[str, Tensor]:
    longest = max(len(example.tokens) for example in examples)
    pads = [longest - len(example.tokens) for example in examples]

    def rows(parts: list[list[int]]) -> Tensor:
        return torch.tensor(parts, device=base.device)

    return {
        "input_ids": rows([[*example.tokens, *[0] * pad] for example, pad in zip(examples, pads, strict=True)]),
        "attention_mask": rows(
            [[1] * len(example.tokens) + [0] * pad for example, pad in zip(examples, pads, strict=True)]
        ),
        "labels": rows(
            [
                [-100] * example.reply_start + [*example.tokens[example.reply_start :]] + [-100] * pad
                for example, pad in zip(examples, pads, strict=True)
            ]
        ),
    }
