"""One student's fine-tuning: what it trains on next, and what it makes of the gradient; the pass itself is shared.

AdamW with a warm-up and a cosine decay (https://arxiv.org/abs/1711.05101). Knows nothing of how a pass is computed or
who else takes part in it.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.packing import Pack
from cloning_server.learning.passes import Forward
from mesh.errors import TrainingDiverged

# Share of the steps over which the learning rate rises: Adam's first moments are noise.
WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0
# Of one pass. From some hundred tokens on the products are no faster, while what is kept for the way back grows: by
# about a megabyte a token of a reply at 135M.
MOST_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """A step that a student's fine-tuning is ready for.

    Attributes:
        forward: The base model's pass; turns of one are taken together.
        pack: What is read.
        factors: Whose gradient is wanted.
    """

    forward: Forward
    pack: Pack
    factors: LoraFactors


def compute_gradients(turns: Sequence[TrainingStep]) -> list[float]:
    """Computes the gradients of several students' steps in as few passes as memory has room for.

    Each loss depends on one student's factors alone, so the gradient of their sum is each one's own.

    Returns:
        The mean nats a reply token of each turn; the gradients are in the factors' vectors.
    """
    losses: list[float] = []
    group: list[TrainingStep] = []
    for turn in turns:
        if group and sum(one.pack.size for one in group) + turn.pack.size > MOST_TOKENS:
            losses += _pass(group)
            group = []
        group.append(turn)
    return losses + _pass(group)


def _pass(turns: Sequence[TrainingStep]) -> list[float]:
    return turns[0].forward.learn([turn.pack for turn in turns], [turn.factors for turn in turns])


class AdapterOptimizer:
    """The optimizer's side of one fine-tuning.

    Args:
        factors: What is trained.
        steps: How many there will be.
        learning_rate: Peak of the schedule.
    """

    def __init__(self, factors: LoraFactors, *, steps: int, learning_rate: float) -> None:
        self._vector = factors.vector
        self._optimizer = torch.optim.AdamW([self._vector], lr=learning_rate, weight_decay=0.0)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: rate(step, steps))
        self.steps_done = 0

    def step(self, loss: float) -> None:
        """Takes the step that the gradient says.

        Raises:
            TrainingDiverged: If the loss or the gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_([self._vector], MAX_GRADIENT_NORM)
        require_finite(loss, float(norm), step=self.steps_done)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.steps_done += 1


def heldout_loss(forward: Forward, packs: Sequence[Pack], factors: LoraFactors | None) -> float:
    """Mean nats a reply token over all packs, with an adapter or without any."""
    with torch.inference_mode():
        nats = [forward.nats([pack], [factors])[0] for pack in packs]
    return float(torch.cat(nats).mean())


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear rise, then a cosine down to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def require_finite(*values: float, step: int) -> None:
    """Returns if all are finite.

    Raises:
        TrainingDiverged: If one is not.
    """
    if not all(map(math.isfinite, values)):
        raise TrainingDiverged(step=step)


def order_of(packs: Sequence[Pack], *, draws: random.Random) -> list[Pack]:
    """The packs in the order of one epoch."""
    return draws.sample(list(packs), len(packs))
