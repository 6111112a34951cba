"""Fidelity: whether a reply says what a reference answer says, judged by words and strictly.

A small model that restates an answer fails in known ways: it leaves parts out, swaps them ("the sand is too small"),
negates them ("is not parallel"), makes up numbers, or goes on about something else. Each failure has its check here.
Where the checks err, they err on the strict side: that costs a retry, while a wrong reply would be taught to a student.

English only. Knows nothing of models or students.
"""

import itertools
import re
from collections.abc import Iterable, Sequence

# Share of the reference's content words that the reply must have, in the reference's order.
MIN_CONTENT_SHARE = 0.8
# Share of the reply's content words that may be in neither reference nor question.
MAX_NEW_SHARE = 0.2
# A reply may have the reference's words times the ratio, and the extra words: room to split a sentence, not to go on.
MAX_LENGTH_RATIO, MAX_EXTRA_WORDS = 1.2, 2

# A number with its sign, a word, or an operator; the hyphen of "D-cell" and the dash of "10-15" are neither.
_WORD = re.compile(
    r"(?:(?<!\w)[-\u2212])?\d+(?:[.,/:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*|[+=<>\u00d7\u00f7%°^*/$€£]|(?<=\s)[-\u2212](?=\s)"
)
_STEP_MARKER = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+", re.MULTILINE)
_SUFFIX = re.compile(r"(?<=\w{3})(?:ing|edly|ed|es|ly|s|e)$")
_DOUBLED = re.compile(r"([bdgmnprt])\1$")

_STOPWORDS = frozenset((
    "a", "about", "also", "am", "an", "and", "any", "are", "as", "at", "be", "because", "been", "being", "but",
    "by", "can", "could", "did", "do", "does", "doing", "done", "down", "for", "from", "get", "gets", "give",
    "gives", "go", "goes", "got", "had", "has", "have", "he", "her", "here", "hers", "him", "his", "how", "i", "if",
    "in", "into", "is", "it", "its", "itself", "just", "let's", "like", "made", "make", "makes", "may", "me",
    "might", "must", "my", "of", "off", "on", "or", "our", "out", "over", "own", "put", "she", "should", "since",
    "so", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "thing", "this",
    "those", "to", "too", "up", "us", "use", "used", "uses", "using", "very", "was", "way", "we", "were", "what",
    "when", "where", "which", "while", "who", "whom", "whose", "why", "will", "with", "would", "you", "your", "one",
    "answer", "question", "right", "student", "means", "mean", "know", "knows", "think", "thinks", "say", "says",
    "tell", "tells", "told", "find", "finds", "look", "looks", "see", "sees", "happen", "happens", "idea", "means",
))  # fmt: skip
_NEGATIONS = frozenset({"no", "not", "never", "cannot", "neither", "nor", "none", "nothing", "without"})
_NUMBER_WORDS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10",
}  # fmt: skip
# Words that reverse a statement when they are swapped.
_POLES = frozenset((
    "more", "less", "fewer", "most", "least", "higher", "lower", "high", "low", "increase", "decrease", "large",
    "larger", "big", "bigger", "small", "smaller", "hot", "hotter", "warm", "warmer", "cold", "colder", "cool",
    "cooler", "fast", "faster", "slow", "slower", "quickly", "slowly", "long", "longer", "short", "shorter", "open",
    "closed", "complete", "incomplete", "same", "different", "heavier", "lighter", "heavy", "before", "after",
    "always", "positive", "negative", "north", "south", "east", "west", "inside", "outside", "above", "below",
    "true", "false", "parallel", "series", "gain", "lose", "rise", "fall", "thick", "thin", "loud", "quiet", "soft",
    "hard", "harder", "first", "last", "wet", "dry", "near", "far", "empty", "full", "acid", "base",
))  # fmt: skip


def content_faults(reply: str, reference: str, *, question: str) -> list[str]:
    """Why a reply does not say what a reference answer says; empty if it does.

    The reply must have `MIN_CONTENT_SHARE` of the reference's content words in their order; the reference's numbers
    with their units, its negations and its opposites ("more", "left"), in the same order and none but these and the
    question's; no yes where the reference says no; and few content words that are in neither reference nor question.
    """
    words, reference_words, question_words = _words(reply), _words(reference), _words(question)
    faults = _shape_faults(reply, words, like=reference_words)
    content = _content(reference_words)
    if _common_length(content, _content(words)) < MIN_CONTENT_SHARE * len(content):
        faults.append("lacks content of the reference")
    if not _is_subsequence(_pivots(reference_words), _pivots(words)):
        faults.append("lacks a number, a negation or an opposite of the reference, or swaps them")
    if sum(map(_negates, words)) != sum(map(_negates, reference_words)):
        faults.append("denies what the reference does not, or the other way round")
    if not set(_pivots(words)) <= set(_pivots(reference_words)) | set(_pivots(question_words)):
        faults.append("has numbers or opposites of its own")
    if not _units(reference_words) <= _units(words):
        faults.append("lacks a unit of the reference")
    if _yes_or_no(words) not in {None, _yes_or_no(reference_words)} and _yes_or_no(reference_words):
        faults.append("contradicts the reference's yes or no")
    if _new_share(words, reference_words + question_words) > MAX_NEW_SHARE:
        faults.append("is about something else")
    return faults


def _shape_faults(reply: str, words: Sequence[str], *, like: Sequence[str]) -> list[str]:
    if not words:
        return ["is empty"]
    faults = []
    if len(words) > MAX_LENGTH_RATIO * len(like) + MAX_EXTRA_WORDS:
        faults.append("is too long")
    if _repeats(words) > _repeats(like):
        faults.append("repeats itself")
    if reply.rstrip("\"')* ")[-1:] not in {".", "!", "?"}:
        faults.append("does not end with a whole sentence")
    return faults


def _repeats(words: Sequence[str]) -> int:
    """How many sequences of four words occurred before; a reference may have some of its own."""
    fours = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    return len(fours) - len(set(fours))


def _words(text: str) -> list[str]:
    plain = _STEP_MARKER.sub("", text.replace("\u2019", "'").replace("\u2212", "-")).lower()
    return [_NUMBER_WORDS.get(word, word).removesuffix("'s") for word in _WORD.findall(plain)]


def _stem(word: str) -> str:
    """The word without its ending: `heats`, `heating` and `heated` are the same, but `hotter` is not `hot`."""
    if word.endswith("ies") and len(word) > 4:
        word = f"{word[:-3]}y"
    return _DOUBLED.sub(r"\1", _SUFFIX.sub("", word))


def _content(words: Iterable[str]) -> list[str]:
    return [_stem(word) for word in words if _is_word(word) and word not in _STOPWORDS and not _negates(word)]


def _is_word(word: str) -> bool:
    """Whether it is a word or a number, rather than an operator."""
    return word[-1].isalnum()


def _negates(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")


def _pivots(words: Iterable[str]) -> list[str]:
    """The words that change a meaning when they are left out, added or swapped, in order."""
    return [
        "not" if _negates(word) else _stem(word)
        for word in words
        if _negates(word) or word[-1].isdigit() or not _is_word(word) or _stem(word) in _POLE_STEMS
    ]


_POLE_STEMS = frozenset(map(_stem, _POLES))


def _units(words: Sequence[str]) -> set[tuple[str, str]]:
    """Each number with the content word that follows it."""
    return {
        (number, _stem(unit))
        for number, unit in itertools.pairwise(words)
        if number[-1].isdigit() and unit not in _STOPWORDS and not unit[-1].isdigit()
    }


def _yes_or_no(words: Sequence[str]) -> str | None:
    return words[0] if words and words[0] in {"yes", "no"} else None


def _new_share(words: Sequence[str], sources: Sequence[str]) -> float:
    """The share of content words that the sources do not have."""
    content, allowed = _content(words), set(_content(sources))
    return sum(word not in allowed for word in content) / max(len(content), 1)


def _is_subsequence(words: Sequence[str], sequence: Sequence[str]) -> bool:
    """Whether the words occur in the sequence in this order, with or without others between them."""
    remaining = iter(sequence)
    return all(word in remaining for word in words)


def _common_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        before = lengths[:]
        for place, other_word in enumerate(right):
            lengths[place + 1] = before[place] + 1 if word == other_word else max(before[place + 1], lengths[place])
    return lengths[-1]
