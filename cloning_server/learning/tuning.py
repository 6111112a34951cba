"""Settings that are chosen for an adapter on the held-out examples: its scale, and its serving profile."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import Pack
from cloning_server.learning.passes import Passes
from mesh.adapters.manifest import DEFAULT_SERVING, Serving
from mesh.lm.chat import Example
from mesh.lm.repetition import RunTokens, choose_run_length

# Multipliers of LoRA's scaling. Below 1 undoes overfitting to few examples, above 1 makes up for few steps.
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
# Temperature for a calibrated model: a tutor should say likely things, not sample from the whole distribution.
CALIBRATED_TEMPERATURE = DEFAULT_SERVING.temperature
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.2, 1.0
# Divisors of the logits that calibration tries.
_DIVISORS = tuple(step / 20 for step in range(8, 33))
# Cuts off the tail of unlikely tokens (nucleus sampling, https://arxiv.org/abs/1904.09751); not worth a search.
TOP_P = DEFAULT_SERVING.top_p
# Multiplies the 95th percentile of reply lengths: students ask for more than the baseline did.
LENGTH_MARGIN = 2.0
MIN_REPLY_TOKENS, MAX_REPLY_TOKENS = 64, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A scale, and the held-out loss with it in nats per token."""

    scale: float
    heldout_loss: float


def try_scales(
    passes: Passes, factors: LoraFactors, heldout: Sequence[Pack], *, start: Trial, scaling: float
) -> Iterator[Trial]:
    """Raises or lowers the scale as long as the held-out loss falls; leaves the adapter at the last scale.

    The loss has one minimum along the scale, so scales beyond a rise need not be tried.
    """
    for direction in (1, -1):
        best = start
        beyond = [scale for scale in SCALES[::direction] if direction * (scale - start.scale) > 0]
        for scale in beyond:
            factors.scaling = scale * scaling
            trial = Trial(scale=scale, heldout_loss=heldout_loss(passes, heldout, factors))
            yield trial
            if not trial.heldout_loss < best.heldout_loss:
                break
            best = trial
        if best is not start:
            return


def choose_serving(
    passes: Passes,
    factors: LoraFactors,
    heldout: Sequence[Pack],
    *,
    examples: Sequence[Example],
    run_tokens: RunTokens,
    least_run: int,
) -> Serving:
    """Chooses the serving profile: the temperature by calibration of the adapter, the rest by the examples' replies.

    Temperature scaling (https://arxiv.org/abs/1706.04599) finds the divisor of the logits that makes the held-out
    replies likeliest; it is above 1 for an overconfident model, which is therefore served at a higher temperature.

    Args:
        passes: The base model.
        factors: The adapter.
        heldout: The held-out examples.
        examples: All examples.
        run_tokens: What the vocabulary's tokens are, for the run that is not repeated.
        least_run: The run that the Main Brain does not repeat; a student's few replies choose no shorter one.
    """
    lengths = sorted(len(example.tokens) - example.reply_start for example in examples)
    usual_tokens = lengths[math.ceil(0.95 * len(lengths)) - 1]
    temperature = CALIBRATED_TEMPERATURE * _calibrate(passes, factors, heldout)
    return Serving(
        temperature=round(min(max(temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE), 3),
        top_p=TOP_P,
        max_tokens=min(max(math.ceil(LENGTH_MARGIN * usual_tokens), MIN_REPLY_TOKENS), MAX_REPLY_TOKENS),
        unrepeated_run=choose_run_length(
            (example.tokens[example.reply_start :] for example in examples), run_tokens, least=least_run
        ),
    )


def _calibrate(passes: Passes, factors: LoraFactors, heldout: Sequence[Pack]) -> float:
    nats = dict.fromkeys(_DIVISORS, 0.0)
    with torch.inference_mode():
        for pack in heldout:
            for logits_BV, targets_B in passes.logits(pack, factors):
                for divisor in _DIVISORS:
                    nats[divisor] += float(functional.cross_entropy(logits_BV / divisor, targets_B, reduction="sum"))
    return min(_DIVISORS, key=lambda divisor: nats[divisor])
