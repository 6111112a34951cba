"""Decoding in batches, with replies of any number of students in one batch.

Prefixes that prompts share are computed once, and rows leave the batch as they end. Every row has its own adapter, its
own sampling settings and its own random numbers, so that a reply does not depend on the other rows.

Knows nothing of students or replies: tokens go in, tokens come out.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, takewhile

import torch
import torch.nn.functional as F
from torch import Tensor

from cloning_server.compute.adapted_map import Adapter
from cloning_server.compute.layers import AdapterSpan, Attention, Layers, PassInput
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.compute.prefix_cache import PrefixAttention, RowCache, SharedPrefix
from mesh.lm.repetition import RunHistory, RunTokens

# Rows of one batch: enough to amortise reading the weights, few enough for the keys and values of long prompts (46 kB
# per token at 135M in fp32) to stay small beside them.
MAX_ROWS = 64
# The nucleus of a peaked distribution is small; sampling from the likeliest tokens alone avoids a sort of all.
_CANDIDATES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How tokens are sampled: from the nucleus (https://arxiv.org/abs/1904.09751), or greedily at temperature 0.

    Attributes:
        temperature: 0 for greedy.
        top_p: Share of the probability that the nucleus holds.
        favour: Added to the logits of each prompt's favoured tokens, in nats; 0 for none.
        seed: Of the random numbers; the same prompt with the same adapter gives the same tokens in any batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    favour: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A prompt to continue.

    Attributes:
        tokens: The prompt.
        max_tokens: Length limit of the continuation.
        end_token: The token that ends it.
        draw: How its tokens are sampled.
        favoured: Tokens that are favoured: a copy bias, as a pointer network learns it
            (https://arxiv.org/abs/1704.04368).
        factors: The adapter, in its state when decoding begins; None for the base model.
        unrepeated_run: Tokens of a run that is not said twice, as in serving; 0 for no such rule.
        run_tokens: What that rule needs to know of the vocabulary.
        is_enough: Whether the tokens so far suffice and decoding stops; called after every token.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    end_token: int
    draw: Draw
    favoured: frozenset[int] = frozenset()
    factors: LoraFactors | None = None
    unrepeated_run: int = 0
    run_tokens: RunTokens | None = None
    # Decides when to stop, not what is decoded: openings that differ in it alone are decoded once.
    is_enough: Callable[[Sequence[int]], bool] = field(default=lambda _: False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """The tokens that follow a prompt.

    Attributes:
        tokens: Without the end token.
        is_complete: Whether the model ended it, rather than the limit or `is_enough`.
    """

    tokens: tuple[int, ...]
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Openings that a student's training needs continued before it can go on; at most `MAX_ROWS`.

    Attributes:
        layers: The base model's; decodings with the same layers are computed together.
        openings: The prompts to continue.
    """

    layers: Layers
    openings: Sequence[Opening]


def decode_all(decodings: Sequence[Decoding]) -> list[list[Continuation]]:
    """Computes the decodings of several students as one batch; equal openings are decoded once.

    Returns:
        For each decoding its continuations, in the order of its openings.
    """
    layers = decodings[0].layers
    openings = list(dict.fromkeys(opening for decoding in decodings for opening in decoding.openings))
    numbers = _adapter_numbers(openings)
    # Rows of one adapter, and among them those that begin alike, stand together.
    rows = sorted(openings, key=lambda opening: (numbers[opening.factors], opening.tokens))
    with torch.inference_mode():
        continuations = dict(zip(rows, _BatchDecoder(layers, rows).decode(), strict=True))
    return [[continuations[opening] for opening in decoding.openings] for decoding in decodings]


def group_by_prefix(openings: Sequence[Opening]) -> list[tuple[int, int]]:
    """Groups sorted openings of one adapter by their prefix, so that the fewest tokens are computed in all.

    Returns:
        For each group how many openings it has and how many tokens they share; each opening computes its last token
        itself.
    """
    groups: list[tuple[int, int]] = []
    for previous, opening in zip((None, *openings), openings, strict=False):
        length = len(opening.tokens) - 1
        if previous is not None and previous.factors is opening.factors:
            rows, shared_tokens = groups[-1]
            common = min(_common_prefix(previous.tokens, opening.tokens), shared_tokens, length)
            # Compares what the others would compute again if they shared less with what this one would compute alone.
            if (rows - 1) * (shared_tokens - common) < common:
                groups[-1] = (rows + 1, common)
                continue
        groups.append((1, length))
    return groups


def _adapter_numbers(openings: Iterable[Opening]) -> dict[LoraFactors | None, int]:
    """Numbers the adapters in the order of their first opening; the order of rows must not depend on addresses."""
    adapters = dict.fromkeys(opening.factors for opening in openings)
    return {factors: number for number, factors in enumerate(adapters)}


def _common_prefix(tokens: Sequence[int], other_tokens: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, other_tokens, strict=False)))


class _BatchDecoder:
    """One batch under decoding; `_rows` are the indices of the openings that have not ended."""

    def __init__(self, layers: Layers, openings: Sequence[Opening]) -> None:
        self._layers = layers
        self._openings = openings
        self._tokens: list[list[int]] = [[] for _ in openings]
        self._is_complete = [False] * len(openings)
        self._random = [random.Random(f"{opening.draw.seed} {opening.tokens}") for opening in openings]  # noqa: S311 - repeatable
        self._adapters: dict[LoraFactors | None, Adapter | None] = {
            factors: None if factors is None else Adapter.of(factors, layers.dtype)
            for factors in dict.fromkeys(opening.factors for opening in openings)
        }
        self._histories = [
            RunHistory(opening.unrepeated_run, opening.run_tokens)
            if opening.unrepeated_run and opening.run_tokens
            else None
            for opening in openings
        ]
        self._rows = list(range(len(openings)))
        self._bias_RV = _bias_of(openings, layers)

    def decode(self) -> list[Continuation]:
        """Computes the prompts, then samples token after token until every row has ended."""
        cache, pending = self._begin()
        while self._rows:
            tokens = self._sample(self._logits(cache, pending))
            live = [place for place, token in enumerate(tokens) if self._append(self._rows[place], token)]
            if live and len(live) < len(tokens):
                cache.keep_rows(live)
                if self._bias_RV is not None:
                    self._bias_RV = self._bias_RV[torch.tensor(live, device=self._layers.device)]
            self._rows = [self._rows[place] for place in live]
            pending = [[tokens[place]] for place in live]
        return [
            Continuation(tokens=tuple(tokens), is_complete=is_complete)
            for tokens, is_complete in zip(self._tokens, self._is_complete, strict=True)
        ]

    def _begin(self) -> tuple[RowCache, list[list[int]]]:
        """Computes the shared prefixes; returns the cache, and the rest of each prompt."""
        groups = group_by_prefix(self._openings)
        prefixes = [SharedPrefix(tokens=shared_tokens, rows=rows) for rows, shared_tokens in groups]
        ends = accumulate(prefix.rows for prefix in prefixes)
        firsts = [self._openings[end - prefix.rows] for prefix, end in zip(prefixes, ends, strict=True)]
        parts = [list(first.tokens[: prefix.tokens]) for first, prefix in zip(firsts, prefixes, strict=True)]
        spans = [
            AdapterSpan(tokens=prefix.tokens, outputs=0, adapter=self._adapters[first.factors])
            for first, prefix in zip(firsts, prefixes, strict=True)
        ]
        self._run(parts, [0] * len(parts), spans, attend=PrefixAttention(prefixes))
        prefix_R = [prefix for prefix in prefixes for _ in range(prefix.rows)]
        rests = [
            list(opening.tokens[prefix.tokens :]) for opening, prefix in zip(self._openings, prefix_R, strict=True)
        ]
        columns = max(len(rest) + opening.max_tokens for rest, opening in zip(rests, self._openings, strict=True))
        cache = RowCache(prefixes, columns=columns, shape=self._layers.shape, like=self._layers.head_VH)
        return cache, rests

    def _logits(self, cache: RowCache, pending: Sequence[Sequence[int]]) -> Tensor:
        """Computes the pending tokens of each row; returns the logits after them, [rows, vocabulary]."""
        openings = [self._openings[row] for row in self._rows]
        starts = [
            len(opening.tokens) + len(self._tokens[row]) - len(tokens)
            for row, opening, tokens in zip(self._rows, openings, pending, strict=True)
        ]
        attend = cache.extend([len(tokens) for tokens in pending])
        # Rows of one adapter stand together, so that its update is one product.
        spans = []
        for factors, rows in groupby(zip(openings, pending, strict=True), key=lambda row: row[0].factors):
            lengths = [len(tokens) for _, tokens in rows]
            spans.append(AdapterSpan(tokens=sum(lengths), outputs=len(lengths), adapter=self._adapters[factors]))
        x_RH = self._run(pending, starts, spans, attend=attend)
        logits_RV = F.linear(x_RH, self._layers.head_VH).float()
        return logits_RV if self._bias_RV is None else logits_RV + self._bias_RV

    def _run(
        self,
        parts: Sequence[Sequence[int]],
        starts: Sequence[int],
        spans: Sequence[AdapterSpan],
        *,
        attend: Attention,
    ) -> Tensor:
        """The hidden states at the last token of each part, [parts, hidden], unless the spans have no outputs."""
        device = self._layers.device
        ends = list(accumulate(len(part) for part in parts))
        outputs = [end - 1 for end in ends] if spans[0].outputs else []
        positions = [start + place for start, part in zip(starts, parts, strict=True) for place in range(len(part))]
        inputs = PassInput(
            tokens_N=torch.tensor([token for part in parts for token in part], dtype=torch.long, device=device),
            positions_N=torch.tensor(positions, dtype=torch.long, device=device),
            spans=spans,
            attend=attend,
            outputs_M=torch.tensor(outputs, dtype=torch.long, device=device),
        )
        return self._layers.run(inputs)

    def _append(self, row: int, token: int) -> bool:
        """Appends a row's next token; returns whether the row goes on."""
        opening, tokens = self._openings[row], self._tokens[row]
        if token == opening.end_token:
            self._is_complete[row] = True
            return False
        tokens.append(token)
        if history := self._histories[row]:
            history.push(token)
        return len(tokens) < opening.max_tokens and not opening.is_enough(tokens)

    def _sample(self, logits_RV: Tensor) -> list[int]:
        """A token for each row: the likeliest, or one of the nucleus where the row's draw has a temperature."""
        for place, row in enumerate(self._rows):
            if (history := self._histories[row]) and history.blocked:
                logits_RV[place, sorted(history.blocked)] = -math.inf
        tokens: list[int] = logits_RV.argmax(dim=-1).tolist()
        hot = [place for place, row in enumerate(self._rows) if self._openings[row].draw.temperature > 0]
        if not hot:
            return tokens
        rows = [self._rows[place] for place in hot]
        draws = [self._openings[row].draw for row in rows]
        settings = [
            [draw.temperature, draw.top_p, self._random[row].random()] for draw, row in zip(draws, rows, strict=True)
        ]
        temperature_H1, top_p_H1, chance_H1 = logits_RV.new_tensor(settings).split(1, dim=1)
        top_HK, candidates_HK = logits_RV[hot].topk(_CANDIDATES, dim=-1)
        chances_HK = (top_HK / temperature_H1).softmax(dim=-1)
        before_HK = chances_HK.cumsum(dim=-1) - chances_HK
        reached_HK = chances_HK.masked_fill(before_HK >= top_p_H1, 0).cumsum(dim=-1)
        # The first token whose share of the nucleus, with those before it, exceeds the random number.
        picks_H1 = (reached_HK <= chance_H1 * reached_HK[:, -1:]).sum(dim=-1, keepdim=True).clamp(max=_CANDIDATES - 1)
        for place, token in zip(hot, candidates_HK.gather(1, picks_H1).squeeze(1).tolist(), strict=True):
            tokens[place] = token
        return tokens


def _bias_of(openings: Sequence[Opening], layers: Layers) -> Tensor | None:
    """The bias of each row's logits, [rows, vocabulary]; None if no row favours any token."""
    if not any(opening.favoured and opening.draw.favour for opening in openings):
        return None
    bias_RV = torch.zeros(len(openings), layers.shape.vocabulary, device=layers.device)
    for row, opening in enumerate(openings):
        bias_RV[row, sorted(opening.favoured)] = opening.draw.favour
    return bias_RV
