"""Batched decoding for the teacher: many prompts at once, their common start computed once, rows leaving as they end.

Knows nothing of students or replies; tokens go in, tokens come out.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress, count, takewhile

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from cloning_server.factors import Factors, Pair

# Rows of one batch: enough to pay the weights' way through memory many times over, few enough for the keys and values
# of a long prompt (23 kB a token at 135M) to stay near the cache.
BATCH_ROWS = 32
# The nucleus of a peaked distribution is small; drawing from the likeliest tokens alone spares a sort of all.
_LIKELIEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How tokens are drawn: nucleus sampling (https://arxiv.org/abs/1904.09751), greedy at temperature 0.

    Attributes:
        temperature: 0 for greedy.
        top_p: Share of the probability that the nucleus holds.
        favour: Added to the logits of each prompt's favoured tokens; 0 for none. Nats.
        seed: Of the draws; the same prompts in the same order give the same tokens.
    """

    temperature: float
    top_p: float
    favour: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What is to be continued.

    Attributes:
        tokens: The prompt.
        max_tokens: The longest continuation that is of any use.
        favoured: Tokens that the continuation is nudged to: a copy bias, as a pointer network learns one
            (https://arxiv.org/abs/1704.04368).
    """

    tokens: tuple[int, ...]
    max_tokens: int
    favoured: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What followed a prompt.

    Attributes:
        tokens: Without the end token.
        ended: Whether the model ended it, rather than the limit.
    """

    tokens: tuple[int, ...]
    ended: bool


def continue_all(
    model: PreTrainedModel, openings: Sequence[Opening], *, end_token: int, draw: Draw
) -> Iterator[dict[int, Continuation]]:
    """Decodes a continuation of every opening; yields a batch at a time, by index of the opening.

    Openings that begin alike share a batch, so that what they have in common is computed once for all of them.
    """
    order = sorted(range(len(openings)), key=lambda index: openings[index].tokens)
    generator = torch.Generator(model.device).manual_seed(draw.seed)
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        batch = _Batch(model, [openings[row] for row in rows], favour=draw.favour)
        found = _decode(batch, end_token=end_token, draw=draw, generator=generator)
        yield dict(zip(rows, found, strict=True))


@contextmanager
def adapted(model: PreTrainedModel, factors: Factors | None) -> Iterator[None]:
    """Within it the model decodes with an adapter. Weights are left alone, whatever they are held in."""
    with ExitStack() as stack:
        for name, pair in (factors.pairs(model.dtype) if factors else {}).items():
            assert factors is not None
            hook = partial(_add_update, pair=pair, scaling=factors.scaling)
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


def _add_update(_: nn.Module, given: tuple[Tensor, ...], out: Tensor, *, pair: Pair, scaling: float) -> Tensor:
    return out + given[0] @ pair.a_RI.t() @ pair.b_OR.t() * scaling


class _Batch:
    """Rows under decoding: left-padded prompts behind a prefix that all share."""

    def __init__(self, model: PreTrainedModel, openings: Sequence[Opening], *, favour: float) -> None:
        prompts = [opening.tokens for opening in openings]
        self.model = model
        self.rows = list(range(len(prompts)))
        self.limits = [opening.max_tokens for opening in openings]
        self.bias_BV = torch.zeros(len(prompts), model.config.vocab_size, device=model.device)
        for row, opening in enumerate(openings):
            self.bias_BV[row, sorted(opening.favoured)] = favour
        # The last token of a prompt is kept out of the prefix, as every row needs one to start from.
        shortest = min(len(prompt) for prompt in prompts) - 1
        same = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
        shared = min(sum(1 for _ in same), shortest)
        self.cache: Cache = DynamicCache(config=model.config)
        if shared:
            prefix = torch.tensor([prompts[0][:shared]], device=model.device)
            with torch.inference_mode():
                model(input_ids=prefix, past_key_values=self.cache, logits_to_keep=1)
            self.cache.batch_repeat_interleave(len(prompts))
        width = max(len(prompt) for prompt in prompts)
        self.pending_BT = torch.tensor(
            [[0] * (width - len(prompt)) + list(prompt[shared:]) for prompt in prompts], device=model.device
        )
        self.mask_BS = torch.tensor(
            [[1] * shared + [0] * (width - len(prompt)) + [1] * (len(prompt) - shared) for prompt in prompts],
            device=model.device,
        )

    def next_logits(self) -> torch.Tensor:
        """Feeds what is pending and returns the logits after it, [rows, vocabulary]."""
        positions_BS = (self.mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        with torch.inference_mode():
            output = self.model(
                input_ids=self.pending_BT,
                attention_mask=self.mask_BS,
                position_ids=positions_BS[:, -self.pending_BT.shape[1] :],
                past_key_values=self.cache,
                logits_to_keep=1,
            )
        logits_BV: torch.Tensor = output.logits[:, -1].float() + self.bias_BV
        return logits_BV

    def append(self, tokens_B: torch.Tensor, keep: Sequence[bool]) -> None:
        """Adds a token to every row and lets go of the rows that are not kept."""
        if not all(keep):
            self.rows = list(compress(self.rows, keep))
            kept = torch.tensor(list(compress(count(), keep)), dtype=torch.long, device=self.model.device)
            self.cache.batch_select_indices(kept)
            self.mask_BS, self.bias_BV, tokens_B = self.mask_BS[kept], self.bias_BV[kept], tokens_B[kept]
        self.pending_BT = tokens_B[:, None]
        self.mask_BS = torch.cat([self.mask_BS, torch.ones_like(self.pending_BT)], dim=1)


def _decode(batch: _Batch, *, end_token: int, draw: Draw, generator: torch.Generator) -> list[Continuation]:
    tokens: list[list[int]] = [[] for _ in batch.rows]
    ended = [False] * len(tokens)
    while batch.rows:
        next_b = _draw_tokens(batch.next_logits(), draw=draw, generator=generator)
        for row, token in zip(batch.rows, next_b.tolist(), strict=True):
            if token == end_token:
                ended[row] = True
            else:
                tokens[row].append(token)
        batch.append(next_b, [not ended[row] and len(tokens[row]) < batch.limits[row] for row in batch.rows])
    return [Continuation(tokens=tuple(row), ended=end) for row, end in zip(tokens, ended, strict=True)]


def _draw_tokens(logits_BV: torch.Tensor, *, draw: Draw, generator: torch.Generator) -> torch.Tensor:
    if draw.temperature == 0:
        return logits_BV.argmax(dim=-1)
    top_BK, tokens_BK = logits_BV.topk(_LIKELIEST, dim=-1)
    chances_BK = (top_BK / draw.temperature).softmax(dim=-1)
    before_BK = chances_BK.cumsum(dim=-1) - chances_BK
    chances_BK = chances_BK.masked_fill(before_BK >= draw.top_p, 0)
    picked_b = torch.multinomial(chances_BK, 1, generator=generator)
    return tokens_BK.gather(1, picked_b).squeeze(1)
