"""Decoding: one conversation on a causal language model, token by token, and what its words would be.

Knows nothing of students, queues or streams; everything here blocks and belongs on the torch thread.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from brain_server.engine import FinishReason
from brain_server.grammar import Constraint

Check = Callable[[], None]

# Prompt tokens between two looks at whether the work is still wanted. On two cores 512 tokens of the default base model
# take about a second; shorter pieces would cost throughput.
_PREFILL_TOKENS = 512
# A nucleus is rarely larger, and finding the largest few is far cheaper than sorting the vocabulary.
_USUAL_NUCLEUS = 256


class NotFinite(Exception):
    """The model's logits hold NaN or infinity: its weights, or the adapter's, are broken."""


class Sampler:
    """Picks tokens, on the CPU whatever the model's device, so that a seed means the same everywhere."""

    def __init__(self, *, temperature: float, top_p: float, seed: int | None = None) -> None:
        """Takes how to pick.

        Args:
            temperature: 0 picks the likeliest token; else the logits are divided by it.
            top_p: Only the likeliest tokens that together reach this probability are picked from (Holtzman et al.,
                "The Curious Case of Neural Text Degeneration", 2020).
            seed: Of this sampler's own random numbers; random if None.
        """
        self._temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)

    def pick(self, logits_V: Tensor) -> int:
        """The next token.

        Args:
            logits_V: float32, on the CPU; minus infinity excludes a token.

        Raises:
            NotFinite: There is a NaN among them, or all are infinite.
        """
        # A NaN anywhere makes the maximum NaN.
        top, token = logits_V.max(dim=-1)
        if not torch.isfinite(top):
            raise NotFinite
        if self._temperature == 0:
            return int(token)
        probabilities_V = torch.softmax((logits_V - top) / self._temperature, dim=-1)
        return self._draw(probabilities_V)

    def _draw(self, probabilities_V: Tensor) -> int:
        vocabulary = probabilities_V.shape[-1]
        likely_K, tokens_K = probabilities_V.topk(min(_USUAL_NUCLEUS, vocabulary))
        cumulative_K = likely_K.cumsum(dim=-1)
        if cumulative_K[-1] < self._top_p:
            likely_K, tokens_K = probabilities_V.sort(descending=True)
            cumulative_K = likely_K.cumsum(dim=-1)
        nucleus = min(int(torch.searchsorted(cumulative_K, self._top_p)) + 1, len(cumulative_K))
        # A number below the nucleus's whole probability falls on each token as often as its share is.
        number = torch.rand((), generator=self._generator) * cumulative_K[nucleus - 1]
        place = int(torch.searchsorted(cumulative_K[:nucleus], number, right=True))
        return int(tokens_K[min(place, nucleus - 1)])


class TextStream:
    """Turns tokens into text as they come: whole characters, spaces as in the whole reply, no special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """What the token completes: often a word, empty while a character lacks bytes."""
        return self._stream.step(self._tokenizer, token) or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to decode one reply.

    Attributes:
        sampler: Picks the tokens.
        max_tokens: Most tokens of the reply, at least 1; with the prompt they fit the context window.
        stop_tokens: End the reply; they are not part of it.
        constraint: What the reply must satisfy, if anything.
    """

    sampler: Sampler
    max_tokens: int
    stop_tokens: frozenset[int]
    constraint: Constraint | None = None


@torch.inference_mode()
def decode(
    model: PreTrainedModel, prompt: Sequence[int], *, plan: Plan, take: Callable[[int], None], check: Check
) -> FinishReason:
    """Decodes one reply.

    Args:
        model: In eval mode.
        prompt: Token ids, at least one.
        plan: How to decode.
        take: Is given every token of the reply as soon as it is picked.
        check: Is called before every token, and in a long prompt now and then; what it raises ends the work.

    Raises:
        NotFinite: The model, or its adapter, is broken.
    """
    cache = DynamicCache(config=model.config)
    logits_V = _prefill(model, prompt, cache, check=check)
    for room in range(plan.max_tokens, 0, -1):
        check()
        if plan.constraint is not None:
            plan.constraint.mask(logits_V)
        token = plan.sampler.pick(logits_V)
        if token in plan.stop_tokens:
            return FinishReason.STOP
        ending = plan.constraint.accept(token, room=room) if plan.constraint is not None else None
        for taken in (token,) if ending is None else ending:
            take(taken)
        if ending is not None or (plan.constraint is not None and plan.constraint.complete):
            return FinishReason.STOP
        if room > 1:
            logits_V = _advance(model, [token], cache)
    return FinishReason.LENGTH


@torch.inference_mode()
def weigh(
    model: PreTrainedModel, prompt: Sequence[int], continuations: Sequence[Sequence[int]], *, check: Check
) -> list[float]:
    """How likely the model is to go on with each continuation rather than with another; adds up to 1.

    A continuation's weight is the product of its tokens' probabilities. The prompt is read once, all continuations in
    one batch behind it.

    Args:
        model: In eval mode.
        prompt: Token ids, at least one.
        continuations: Token ids, at least one each; none should begin with another, as both would be counted.
        check: Is called in a long prompt now and then; what it raises ends the work.

    Raises:
        NotFinite: The model is broken.
    """
    cache = DynamicCache(config=model.config)
    first_V = _prefill(model, prompt, cache, check=check).log_softmax(dim=-1)
    scores_B = torch.stack([first_V[tokens[0]] for tokens in continuations])
    if (width := max(map(len, continuations)) - 1) > 0:
        # What pads a row stands behind its last token, where nothing that counts can see it.
        rows = [[*tokens, *[0] * (width + 1 - len(tokens))] for tokens in continuations]
        tokens_BT = torch.tensor(rows, device=model.device)
        cache.batch_repeat_interleave(len(rows))
        output = model(input_ids=tokens_BT[:, :-1], past_key_values=cache, use_cache=True)
        log_BTV = output.logits.float().log_softmax(dim=-1)
        log_BT = log_BTV.gather(-1, tokens_BT[:, 1:, None]).squeeze(-1).cpu()
        counts_BT = torch.tensor([[place < len(row) for place in range(1, width + 1)] for row in continuations])
        scores_B = scores_B + torch.where(counts_BT, log_BT, 0).sum(dim=-1)
    if not torch.isfinite(scores_B).all():
        raise NotFinite
    return [float(weight) for weight in scores_B.softmax(dim=-1)]


def _prefill(model: PreTrainedModel, prompt: Sequence[int], cache: DynamicCache, *, check: Check) -> Tensor:
    for start in range(0, len(prompt), _PREFILL_TOKENS):
        check()
        logits_V = _advance(model, prompt[start : start + _PREFILL_TOKENS], cache)
    return logits_V


def _advance(model: PreTrainedModel, tokens: Sequence[int], cache: DynamicCache) -> Tensor:
    """Reads the tokens and returns the logits of what follows, float32 on the CPU."""
    tokens_BT = torch.tensor([tokens], device=model.device)
    output = model(input_ids=tokens_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits_V: Tensor = output.logits[0, -1].float().cpu()
    return logits_V
