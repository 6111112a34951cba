"""The optimizer's side of fine-tuning: steps and their gradients, the schedule, the held-out loss.

AdamW with a warm-up and a cosine decay (https://arxiv.org/abs/1711.05101). Knows nothing of how a pass is computed or
of the order of a training.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.packing import Pack
from cloning_server.learning.passes import Passes
from mesh.errors import TrainingDiverged

# Share of the steps over which the learning rate rises: Adam's first moment estimates are noise.
WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0
# Limit of one pass. Beyond some hundred tokens the products become no faster, while the memory for the backward pass
# grows: by about a megabyte per reply token at 135M.
MAX_PASS_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """The next step of one student's fine-tuning.

    Attributes:
        passes: The base model's; steps with the same passes are computed together.
        pack: The examples.
        factors: The adapter; the gradient is added to its own.
    """

    passes: Passes
    pack: Pack
    factors: LoraFactors


def compute_gradients(steps: Sequence[TrainingStep]) -> list[float]:
    """Computes the gradients of several students' steps in as few passes as memory has room for.

    Each loss depends on one student's factors alone, so the gradient of their sum is each student's own.

    Returns:
        The mean nats per reply token of each step; the gradients are in the factors' vectors.
    """
    losses: list[float] = []
    group: list[TrainingStep] = []
    for step in steps:
        if group and sum(member.pack.size for member in group) + step.pack.size > MAX_PASS_TOKENS:
            losses += _compute_pass(group)
            group = []
        group.append(step)
    return losses + _compute_pass(group)


def _compute_pass(steps: Sequence[TrainingStep]) -> list[float]:
    return steps[0].passes.add_gradients([step.pack for step in steps], [step.factors for step in steps])


class AdapterOptimizer:
    """The optimizer and the schedule of one adapter.

    Args:
        factors: The adapter.
        steps: How many steps there will be.
        learning_rate: Peak of the schedule.

    Attributes:
        steps_done: How many steps were applied.
    """

    def __init__(self, factors: LoraFactors, *, steps: int, learning_rate: float) -> None:
        self._vector = factors.vector
        self._optimizer = torch.optim.AdamW([self._vector], lr=learning_rate, weight_decay=0.0)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: rate(step, steps))
        self.steps_done = 0

    def step(self, loss: float) -> None:
        """Applies the gradient of one step and clears it.

        Raises:
            TrainingDiverged: The loss or the gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_([self._vector], MAX_GRADIENT_NORM)
        require_finite(loss, float(norm), step=self.steps_done)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.steps_done += 1

    def state(self) -> dict[str, Any]:
        """The optimizer's and the schedule's state, to go on from later."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "steps": self.steps_done,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of the same training; the factors are the caller's."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.steps_done = int(state["steps"])


def heldout_loss(passes: Passes, packs: Sequence[Pack], factors: LoraFactors | None) -> float:
    """Mean nats per reply token over all packs, with an adapter or with the base model alone."""
    with torch.inference_mode():
        nats = [passes.nats([pack], [factors])[0] for pack in packs]
    return float(torch.cat(nats).mean())


def rate(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: a linear rise, then a cosine decay to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def require_finite(*values: float, step: int) -> None:
    """Returns if all values are finite.

    Raises:
        TrainingDiverged: A value is not.
    """
    if not all(map(math.isfinite, values)):
        raise TrainingDiverged(step=step)


def order_of(packs: Sequence[Pack], *, draws: random.Random) -> list[Pack]:
    """The packs in random order, for one epoch."""
    return draws.sample(list(packs), len(packs))
