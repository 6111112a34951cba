"""Decoding in batches, any number of students' replies in one: common beginnings are read once, rows leave as they end.

Every row has its own adapter, its own way of drawing and its own chance, so that a reply is the same whoever is decoded
beside it. Knows nothing of students or replies; tokens go in, tokens come out.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, takewhile

import torch
import torch.nn.functional as F
from torch import Tensor

from cloning_server.compute.layers import Adapter, Attention, Layers, Pass, Stretch
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.compute.prefix_cache import Beginning, BeginningAttention, RowCache

# Of one batch: enough to pay the weights' way through memory many times over, few enough for the keys and values of
# long prompts (46 kB a token at 135M in fp32) to stay small beside them.
MOST_ROWS = 64
# The nucleus of a peaked distribution is small; drawing from the likeliest tokens alone spares a sort of all.
_LIKELIEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How tokens are drawn: nucleus sampling (https://arxiv.org/abs/1904.09751), greedy at temperature 0.

    Attributes:
        temperature: 0 for greedy.
        top_p: Share of the probability that the nucleus holds.
        favour: Added to the logits of each prompt's favoured tokens; 0 for none. Nats.
        seed: Of the draws; the same prompt with the same adapter gives the same tokens, whoever is beside it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    favour: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What is to be continued.

    Attributes:
        tokens: The prompt.
        max_tokens: The longest continuation that is of any use.
        end_token: Ends it.
        draw: How its tokens are drawn.
        favoured: Tokens that the continuation is nudged to: a copy bias, as a pointer network learns one
            (https://arxiv.org/abs/1704.04368).
        factors: The adapter that it is decoded with, as it is when that begins; None for the base model.
        is_enough: Whether what was decoded so far is all that is wanted; asked after every token.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    end_token: int
    draw: Draw
    favoured: frozenset[int] = frozenset()
    factors: LoraFactors | None = None
    # Says when to stop, not what is decoded: two that differ in it alone are decoded once.
    is_enough: Callable[[Sequence[int]], bool] = field(default=lambda _: False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What followed a prompt.

    Attributes:
        tokens: Without the end token.
        ended: Whether the model ended it, rather than the limit.
    """

    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Openings that a student's training needs continued before it goes on; no more than `MOST_ROWS`.

    Attributes:
        layers: The base model's; decodings of one are computed together.
        openings: What is to be continued.
    """

    layers: Layers
    openings: Sequence[Opening]


def decode_all(decodings: Sequence[Decoding]) -> list[list[Continuation]]:
    """Computes several students' decodings as one batch; what two of them ask alike is decoded once.

    Returns:
        Each one's continuations, in the order of its openings.
    """
    layers = decodings[0].layers
    wanted = dict.fromkeys(opening for one in decodings for opening in one.openings)
    found: dict[Opening, Continuation] = {}
    with torch.inference_mode():
        # Those that begin alike stand together.
        rows = sorted(wanted, key=lambda opening: (id(opening.factors), opening.tokens))
        found.update(zip(rows, _BatchDecoder(layers, rows).decode(), strict=True))
    return [[found[opening] for opening in one.openings] for one in decodings]


def gather_alike(openings: Sequence[Opening]) -> list[tuple[int, int]]:
    """Groups sorted openings of one adapter by what they begin with, so that least is read in all.

    Returns:
        Of each group how many openings it has and how many tokens they share; each keeps its last for itself.
    """
    groups: list[tuple[int, int]] = []
    for before, opening in zip((None, *openings), openings, strict=False):
        own = len(opening.tokens) - 1
        if before is not None and before.factors is opening.factors:
            rows, shared = groups[-1]
            alike = min(_alike(before.tokens, opening.tokens), shared, own)
            # What the others would read again for sharing less, beside what this one would read for being alone.
            if (rows - 1) * (shared - alike) < alike:
                groups[-1] = (rows + 1, alike)
                continue
        groups.append((1, own))
    return groups


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class _BatchDecoder:
    """Rows under decoding; `_rows` are the places in the openings of those that have not ended."""

    def __init__(self, layers: Layers, openings: Sequence[Opening]) -> None:
        self._layers = layers
        self._openings = openings
        self._tokens: list[list[int]] = [[] for _ in openings]
        self._ended = [False] * len(openings)
        self._chances = [random.Random(f"{one.draw.seed} {one.tokens}") for one in openings]  # noqa: S311 - repeatable
        adapters = {id(one.factors): one.factors for one in openings if one.factors is not None}
        self._adapters = {key: Adapter.of(factors, layers.dtype) for key, factors in adapters.items()}
        self._rows = list(range(len(openings)))
        self._bias_RV = _bias_of(openings, layers)

    def decode(self) -> list[Continuation]:
        """Reads the prompts, then draws token after token until no row is left."""
        cache, pending = self._begin()
        while self._rows:
            drawn = self._draw(self._logits(cache, pending))
            going = [place for place, token in enumerate(drawn) if self._goes_on(self._rows[place], token)]
            if going and len(going) < len(drawn):
                cache.keep(going)
                if self._bias_RV is not None:
                    self._bias_RV = self._bias_RV[torch.tensor(going, device=self._layers.device)]
            self._rows = [self._rows[place] for place in going]
            pending = [[drawn[place]] for place in going]
        return [
            Continuation(tokens=tuple(tokens), ended=ended)
            for tokens, ended in zip(self._tokens, self._ended, strict=True)
        ]

    def _begin(self) -> tuple[RowCache, list[list[int]]]:
        """Reads what rows begin with alike; returns where it is kept, and what is left of each prompt."""
        groups = gather_alike(self._openings)
        beginnings = [Beginning(tokens=shared, rows=rows) for rows, shared in groups]
        shared_R = [shared for rows, shared in groups for _ in range(rows)]
        firsts, place = [], 0
        for one in beginnings:
            firsts.append(self._openings[place])
            place += one.rows
        read = [list(first.tokens[: one.tokens]) for first, one in zip(firsts, beginnings, strict=True)]
        stretches = [
            Stretch(tokens=one.tokens, wanted=0, adapter=self._adapter(first))
            for first, one in zip(firsts, beginnings, strict=True)
        ]
        self._read(read, [0] * len(read), stretches, attend=BeginningAttention(beginnings))
        rests = [list(one.tokens[shared:]) for one, shared in zip(self._openings, shared_R, strict=True)]
        columns = max(len(rest) + one.max_tokens for rest, one in zip(rests, self._openings, strict=True))
        cache = RowCache(beginnings, columns=columns, shape=self._layers.shape, like=self._layers.head_VH)
        return cache, rests

    def _logits(self, cache: RowCache, pending: Sequence[Sequence[int]]) -> Tensor:
        """Reads what is pending of each row; the logits after it, [rows, vocabulary]."""
        openings = [self._openings[row] for row in self._rows]
        starts = [
            len(one.tokens) + len(self._tokens[row]) - len(tokens)
            for row, one, tokens in zip(self._rows, openings, pending, strict=True)
        ]
        cache.expect([len(tokens) for tokens in pending])
        # Rows of one adapter stand together, so that its update is one product.
        stretches = []
        for key, rows in groupby(zip(openings, pending, strict=True), key=lambda row: id(row[0].factors)):
            lengths = [len(tokens) for _, tokens in rows]
            adapter = self._adapters.get(key)
            stretches.append(Stretch(tokens=sum(lengths), wanted=len(lengths), adapter=adapter))
        x_RH = self._read(pending, starts, stretches, attend=cache)
        logits_RV = F.linear(x_RH, self._layers.head_VH).float()
        return logits_RV if self._bias_RV is None else logits_RV + self._bias_RV

    def _read(
        self,
        parts: Sequence[Sequence[int]],
        starts: Sequence[int],
        stretches: Sequence[Stretch],
        *,
        attend: Attention,
    ) -> Tensor:
        """What the head reads at the last token of each part, unless none is wanted."""
        device = self._layers.device
        ends = list(accumulate(len(part) for part in parts))
        wanted = [end - 1 for end in ends] if stretches[0].wanted else []
        positions = [start + place for start, part in zip(starts, parts, strict=True) for place in range(len(part))]
        now = Pass(
            tokens_N=torch.tensor([token for part in parts for token in part], dtype=torch.long, device=device),
            positions_N=torch.tensor(positions, dtype=torch.long, device=device),
            stretches=stretches,
            attend=attend,
            wanted_M=torch.tensor(wanted, dtype=torch.long, device=device),
        )
        return self._layers.read(now)

    def _adapter(self, opening: Opening) -> Adapter | None:
        return self._adapters.get(id(opening.factors))

    def _goes_on(self, row: int, token: int) -> bool:
        """Notes a row's next token; tells whether there may be another."""
        opening, tokens = self._openings[row], self._tokens[row]
        if token == opening.end_token:
            self._ended[row] = True
            return False
        tokens.append(token)
        return len(tokens) < opening.max_tokens and not opening.is_enough(tokens)

    def _draw(self, logits_RV: Tensor) -> list[int]:
        """A token for each row: the likeliest, or one of the nucleus where its draw has a temperature."""
        drawn: list[int] = logits_RV.argmax(dim=-1).tolist()
        hot = [place for place, row in enumerate(self._rows) if self._openings[row].draw.temperature > 0]
        if not hot:
            return drawn
        rows = [self._rows[place] for place in hot]
        draws = [self._openings[row].draw for row in rows]
        facts = [
            [one.temperature, one.top_p, self._chances[row].random()] for one, row in zip(draws, rows, strict=True)
        ]
        heat_H1, top_p_H1, chance_H1 = logits_RV.new_tensor(facts).split(1, dim=1)
        top_HK, tokens_HK = logits_RV[hot].topk(_LIKELIEST, dim=-1)
        chances_HK = (top_HK / heat_H1).softmax(dim=-1)
        before_HK = chances_HK.cumsum(dim=-1) - chances_HK
        reached_HK = chances_HK.masked_fill(before_HK >= top_p_H1, 0).cumsum(dim=-1)
        # The first whose share of the nucleus, with those before it, is beyond the chance.
        picked_H1 = (reached_HK <= chance_H1 * reached_HK[:, -1:]).sum(dim=-1, keepdim=True).clamp(max=_LIKELIEST - 1)
        for place, token in zip(hot, tokens_HK.gather(1, picked_H1).squeeze(1).tolist(), strict=True):
            drawn[place] = token
        return drawn


def _bias_of(openings: Sequence[Opening], layers: Layers) -> Tensor | None:
    """What is added to the logits of each row, [rows, vocabulary]; None where nothing is favoured."""
    if not any(one.favoured and one.draw.favour for one in openings):
        return None
    bias_RV = torch.zeros(len(openings), layers.shape.vocabulary, device=layers.device)
    for row, one in enumerate(openings):
        bias_RV[row, sorted(one.favoured)] = one.draw.favour
    return bias_RV
