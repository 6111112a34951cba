"""Keeps a reply from going round in circles: a run of tokens that it said is not said again, a short one not often.

A small model falls into loops, above all where the likeliest token is picked. Blocking repeated n-grams (Paulus, Xiong
and Socher, "A Deep Reinforced Model for Abstractive Summarization", 2018) ends them. Runs that hold a digit are left
alone: a number must stay what it is, however often it is needed. Only a token that begins a word is blocked: otherwise
a long word or a character of several tokens would end as another one.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

# A run of so many tokens is said twice at most. Good replies hardly ever say one three times, and most circles do.
_SHORT_RUN, _SHORT_RUN_TIMES = 4, 2
# Lengths to choose from, in tokens.
RUN_LENGTHS = (4, 5, 6, 8)
# Of the tokens of good replies, at most this share may be blocked.
MOST_BLOCKED = 0.001
# How tokenizers write the blank before a word: byte-level ones, and SentencePiece.
_WORD_MARKS = ("\u0120", "\u2581")


class Vocabulary(Protocol):
    """What is needed of a transformers tokenizer."""

    def get_vocab(self) -> dict[str, int]:
        """The tokens' ids, by how the vocabulary writes them."""

    def decode(self, token_ids: int) -> str | list[str]:
        """The text of a token."""


@dataclass(frozen=True, kw_only=True)
class RunTokens:
    """What the rule on runs needs to know of a vocabulary.

    Attributes:
        digits: Tokens with a digit in their text; no blocked run holds one.
        word_starts: Tokens that begin a word; only these are blocked.
        lower: For tokens that begin a line or have capitals, the token that says the same in lower case within one.
    """

    digits: frozenset[int]
    word_starts: frozenset[int]
    lower: Mapping[int, int] = field(default_factory=dict, hash=False)

    @functools.cached_property
    def starts_of(self) -> Mapping[int, frozenset[int]]:
        """The tokens that begin a word, by what they say in lower case."""
        groups: dict[int, set[int]] = {}
        for token in self.word_starts:
            groups.setdefault(self.lower.get(token, token), set()).add(token)
        return {lower: frozenset(group) for lower, group in groups.items()}


@functools.lru_cache(maxsize=4)
def run_tokens_of(tokenizer: Vocabulary) -> RunTokens:
    """Returns those of a tokenizer; the first time takes a tenth of a second."""
    vocabulary = tokenizer.get_vocab()
    return RunTokens(
        digits=frozenset(token for token in vocabulary.values() if any(map(str.isdigit, str(tokenizer.decode(token))))),
        word_starts=frozenset(token for text, token in vocabulary.items() if text.startswith(_WORD_MARKS)),
        lower=_lower_tokens(vocabulary),
    )


def _lower_tokens(vocabulary: Mapping[str, int]) -> dict[int, int]:
    """For each token that says the same as another within a line and in lower case, that one."""
    mark = next((mark for mark in _WORD_MARKS if f"{mark}the" in vocabulary), _WORD_MARKS[0])
    lowered = ((token, vocabulary.get(mark + text.removeprefix(mark).lower())) for text, token in vocabulary.items())
    return {token: lower for token, lower in lowered if lower not in {None, token}}


class RunHistory:
    """The runs of one reply so far, and what may not follow.

    Args:
        length: Tokens of a run that is said once, at least 2.
        tokens: What the vocabulary's tokens are.
    """

    def __init__(self, length: int, tokens: RunTokens) -> None:
        self._rules = (
            _RunCounts(length, tokens, most_times=1),
            _RunCounts(_SHORT_RUN, tokens, most_times=_SHORT_RUN_TIMES),
        )

    @property
    def blocked(self) -> frozenset[int]:
        """The tokens that would complete a run that the reply has said too often."""
        return frozenset().union(*(rule.blocked for rule in self._rules))

    def push(self, token: int) -> None:
        """Adds a token of the reply."""
        for rule in self._rules:
            rule.push(token)


class _RunCounts:
    """How often a reply has said each run of one length, and what would say one too often."""

    def __init__(self, length: int, tokens: RunTokens, *, most_times: int) -> None:
        self._tokens = tokens
        self._begun = length - 1
        self._most_times = most_times
        self._tail: tuple[int, ...] = ()
        self._followers: dict[tuple[int, ...], Counter[int]] = {}

    @property
    def blocked(self) -> frozenset[int]:
        followers = self._followers.get(self._tail, Counter())
        spent = (token for token, times in followers.items() if times >= self._most_times)
        return frozenset().union(*(self._tokens.starts_of.get(token, frozenset()) for token in spent))

    def push(self, token: int) -> None:
        if token in self._tokens.digits:
            self._tail = ()
            return
        token = self._tokens.lower.get(token, token)
        if len(self._tail) == self._begun:
            self._followers.setdefault(self._tail, Counter())[token] += 1
        self._tail = (*self._tail, token)[-self._begun :]


def choose_run_length(replies: Iterable[Sequence[int]], tokens: RunTokens, *, least: int = 0) -> int:
    """Returns the shortest of `RUN_LENGTHS` that good replies hardly ever repeat; 0, for none, if they repeat all.

    A block costs likelihood where a good reply repeats itself, and nothing elsewhere: the shorter the run, the more
    circles it ends.

    Args:
        replies: Token ids of replies as they should be.
        tokens: What the vocabulary's tokens are.
        least: No shorter run is chosen: a few replies are little evidence.
    """
    texts = list(replies)
    total = sum(map(len, texts))
    for length in RUN_LENGTHS:
        if length >= least and sum(_count_blocked(text, length, tokens) for text in texts) <= MOST_BLOCKED * total:
            return length
    return 0


def _count_blocked(reply: Sequence[int], length: int, tokens: RunTokens) -> int:
    counts, blocked = _RunCounts(length, tokens, most_times=1), 0
    for token in reply:
        blocked += token in counts.blocked
        counts.push(token)
    return blocked
