"""What is picked for an adapter on the held-out examples: how strongly it speaks, and how it is to be served."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import Pack
from cloning_server.learning.passes import Forward
from mesh.adapters.manifest import Serving
from mesh.lm.chat import Example

# Multipliers on LoRA's scaling. Below 1 undoes overfitting on few examples, above 1 makes up for few steps.
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
# What a calibrated model is served with: a tutor should say the likely thing, not every thing as often as it is likely.
CALIBRATED_TEMPERATURE = 0.7
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.2, 1.0
# The divisors of the logits that are tried for calibration.
_DIVISORS = tuple(step / 20 for step in range(8, 33))
# Cuts the tail of unlikely tokens (nucleus sampling, https://arxiv.org/abs/1904.09751); not worth a search.
TOP_P = 0.9
# Of the replies' 95th percentile: students ask for more than the baseline did.
LENGTH_MARGIN = 2.0
FEWEST_TOKENS, MOST_TOKENS = 64, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One scale that was tried, and the held-out loss with it in nats a token."""

    scale: float
    heldout_loss: float


def try_scales(
    forward: Forward, factors: LoraFactors, heldout: Sequence[Pack], *, start: Trial, scaling: float
) -> Iterator[Trial]:
    """Goes from a scale up or down as long as the held-out loss falls; leaves the adapter at the last one tried.

    The loss has one valley along the scale, so that what lies beyond a rise need not be tried.
    """
    for direction in (1, -1):
        best = start
        beyond = [scale for scale in SCALES[::direction] if direction * (scale - start.scale) > 0]
        for scale in beyond:
            factors.scaling = scale * scaling
            trial = Trial(scale=scale, heldout_loss=heldout_loss(forward, heldout, factors))
            yield trial
            if not trial.heldout_loss < best.heldout_loss:
                break
            best = trial
        if best is not start:
            return


def choose_serving(
    forward: Forward, factors: LoraFactors, heldout: Sequence[Pack], *, examples: Sequence[Example]
) -> Serving:
    """The serving profile: temperature by calibration of the adapter as it is now, length by the examples' replies.

    Temperature scaling (https://arxiv.org/abs/1706.04599) finds the divisor of the logits under which the held-out
    replies are likeliest: above 1 for a model that is surer than it is right. An adapter that is overconfident is thus
    served hotter than one that is not.
    """
    lengths = sorted(len(example.tokens) - example.reply_start for example in examples)
    usual = lengths[math.ceil(0.95 * len(lengths)) - 1]
    temperature = CALIBRATED_TEMPERATURE * _calibrate(forward, factors, heldout)
    return Serving(
        temperature=round(min(max(temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE), 3),
        top_p=TOP_P,
        max_tokens=min(max(math.ceil(LENGTH_MARGIN * usual), FEWEST_TOKENS), MOST_TOKENS),
    )


def _calibrate(forward: Forward, factors: LoraFactors, heldout: Sequence[Pack]) -> float:
    nats = dict.fromkeys(_DIVISORS, 0.0)
    with torch.inference_mode():
        for pack in heldout:
            for logits_BV, targets_B in forward.logits(pack, factors):
                for divisor in _DIVISORS:
                    nats[divisor] += float(functional.cross_entropy(logits_BV / divisor, targets_B, reduction="sum"))
    return min(_DIVISORS, key=lambda divisor: nats[divisor])
