"""How the words of an answer relate to those of the right answer and of the question.

Numbers that a grader uses beside what a model reads from the texts: on short answers word overlap is a strong baseline
(Dzikovska et al., "SemEval-2013 Task 7", 2013). Knows nothing of models.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from mesh.tutoring.criteria import Criteria

# In the order of `overlap_of`.
OVERLAP_FEATURES: Final = ("recall", "precision", "novelty", "length", "negation", "has_reference")

_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_STOP_WORDS = frozenset(
    """
    a an and are as at be because been by can could did do does for from had has have he her his i if in into is it its
    may of on or she should so than that the their them then there these they this to was we were what when where which
    who will with would you your
    """.split()  # noqa: SIM905 (a list of so many strings is hard to read)
)
_NEGATIONS = frozenset({"no", "not", "never", "none", "nothing", "without", "cannot", "neither", "nor", "t"})
# Shorter words are too alike to be misspellings of each other, and longer ones are no words.
_SHORTEST, _LONGEST = 5, 40
_ENDINGS = ("ations", "ation", "ingly", "ings", "edly", "ing", "ies", "ied", "ers", "est", "ed", "er", "es", "ly", "s")


def overlap_of(answer: str, criteria: Criteria) -> tuple[float, ...]:
    """Returns the features of an answer, each from -1 to 1, in the order of `OVERLAP_FEATURES`.

    - recall: the share of the right answer's words that the answer has;
    - precision: the share of the answer's words that the right answer has;
    - novelty: the share of the answer's words that the question lacks;
    - length: the logarithm of the ratio of their lengths, bounded;
    - negation: 1 if exactly one of answer and right answer denies something;
    - has_reference: 1 if the right answer is expected. Without one, recall, precision, length and negation are 0.
    """
    reference_text = criteria.reference_answer or criteria.learning_objective
    words, reference, question = stems_of(answer), stems_of(reference_text), stems_of(criteria.question)
    novelty = len(words - question) / len(words) if words else 0.0
    if not reference:
        return 0.0, 0.0, novelty, 0.0, 0.0, 0.0
    shared, expected = count_like(reference, words), count_like(words, reference)
    length = math.log((len(words) + 1) / (len(reference) + 1)) / 2
    return (
        shared / len(reference),
        expected / len(words) if words else 0.0,
        novelty,
        max(-1.0, min(1.0, length)),
        float(denies(answer) != denies(reference_text)),
        float(bool(criteria.reference_answer)),
    )


def stems_of(text: str) -> AbstractSet[str]:
    """Returns the stems of the words of a text that carry meaning, and its numbers."""
    return {_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS}


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def count_like(words: AbstractSet[str], others: AbstractSet[str]) -> int:
    """Returns how many of the words are among the others, or misspell one of them."""
    by_rest = _by_rest(others)
    return sum(
        word in others or any(_is_misspelt(word, other) for rest in _rests(word) for other in by_rest.get(rest, ()))
        for word in words
    )


def misspelt_pairs(words: AbstractSet[str], others: AbstractSet[str]) -> Iterator[tuple[str, str]]:
    """Yields each word that misspells one of the others, with that other; a pair may come more than once."""
    by_rest = _by_rest(others)
    for word in words:
        for rest in _rests(word):
            yield from ((word, other) for other in by_rest.get(rest, ()) if _is_misspelt(word, other))


def _by_rest(words: AbstractSet[str]) -> Mapping[str, Sequence[str]]:
    by_rest: defaultdict[str, list[str]] = defaultdict(list)
    for word in words:
        for rest in _rests(word):
            by_rest[rest].append(word)
    return by_rest


def _rests(word: str) -> AbstractSet[str]:
    """Returns a long word, and what is left of it without one letter: two words with one edit between them share one.

    So only few pairs of words need a comparison; a student's text can be long.
    """
    if not _SHORTEST <= len(word) <= _LONGEST:
        return frozenset()
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}


def _is_misspelt(word: str, other: str) -> bool:
    """Whether there is one edit between two stems: a letter more, less or another, or two neighbours swapped."""
    if abs(len(word) - len(other)) > 1:
        return False
    prefix = next((index for index, pair in enumerate(zip(word, other, strict=False)) if pair[0] != pair[1]), None)
    if prefix is None:
        return True
    return (
        word[prefix + 1 :] == other[prefix + 1 :]
        or word[prefix:] == other[prefix + 1 :]
        or word[prefix + 1 :] == other[prefix:]
        or (word[prefix : prefix + 2] == other[prefix : prefix + 2][::-1] and word[prefix + 2 :] == other[prefix + 2 :])
    )


def denies(text: str) -> bool:
    """Whether a text has a word that denies, such as "not"."""
    return not _NEGATIONS.isdisjoint(_WORD.findall(text.lower()))
