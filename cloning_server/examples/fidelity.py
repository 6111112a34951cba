"""Whether a reply says what a reference answer says: a judgement by words, strict enough to teach by.

A small model that restates an answer goes wrong in known ways: it leaves parts out, swaps them ("the sand is too
small"), turns them round ("is not parallel"), makes up numbers, or talks on about something else. Each way has its
check here. What is judged wrongly is judged too strictly, which costs a retry; a wrong reply
that is taught costs a student.

English only. Knows nothing of models or students.
"""

import itertools
import re
from collections.abc import Iterable, Sequence

# Of the reference's content words, the share that the reply must hold, in the reference's order.
MIN_HELD = 0.8
# Of the reply's content words, the share that may come from neither reference nor question.
MAX_NEW = 0.2
# A reply may be this much longer than the reference, in words: room to split a sentence, none to talk on.
MAX_LONGER, MAX_MORE_WORDS = 1.2, 2
# Of a question's content words, the share that a reply must name to count as on its topic.
MIN_ON_TOPIC = 0.3

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
# Words that turn a statement round when one stands for the other.
_POLES = frozenset((
    "more", "less", "fewer", "most", "least", "higher", "lower", "high", "low", "increase", "decrease", "large",
    "larger", "big", "bigger", "small", "smaller", "hot", "hotter", "warm", "warmer", "cold", "colder", "cool",
    "cooler", "fast", "faster", "slow", "slower", "quickly", "slowly", "long", "longer", "short", "shorter", "open",
    "closed", "complete", "incomplete", "same", "different", "heavier", "lighter", "heavy", "before", "after",
    "always", "positive", "negative", "north", "south", "east", "west", "inside", "outside", "above", "below",
    "true", "false", "parallel", "series", "gain", "lose", "rise", "fall", "thick", "thin", "loud", "quiet", "soft",
    "hard", "harder", "first", "last", "wet", "dry", "near", "far", "empty", "full", "acid", "base",
))  # fmt: skip


def faults_of(reply: str, reference: str, *, question: str) -> list[str]:
    """Why a reply does not hold the substance of a reference answer; empty if it does.

    The reply must hold `MIN_HELD` of the reference's content words in their order; say its numbers with their units,
    its negations and its opposites ("more", "left"), in the same order and no others but the question's; not say yes
    where the reference says no; and stay with what reference and question talk of.
    """
    said, meant, asked = _words(reply), _words(reference), _words(question)
    faults = _misshapen(reply, said, like=meant)
    wanted = _content(meant)
    if _common_length(wanted, _content(said)) < MIN_HELD * len(wanted):
        faults.append("lacks content of the reference")
    if not _is_within(_pivots(meant), _pivots(said)):
        faults.append("lacks a number, a negation or an opposite of the reference, or swaps them")
    if sum(map(_negates, said)) != sum(map(_negates, meant)):
        faults.append("denies what the reference does not, or the other way round")
    if not set(_pivots(said)) <= set(_pivots(meant)) | set(_pivots(asked)):
        faults.append("has numbers or opposites of its own")
    if not _units(meant) <= _units(said):
        faults.append("lacks a unit of the reference")
    if _says_yes_or_no(said) not in {None, _says_yes_or_no(meant)} and _says_yes_or_no(meant):
        faults.append("contradicts the reference's yes or no")
    if _new_share(said, meant + asked) > MAX_NEW:
        faults.append("talks of something else")
    return faults


def faults_off_topic(reply: str, *, question: str) -> list[str]:
    """Why a reply does not stay with a question whose answer is not known; empty if it does."""
    said, asked = _words(reply), _words(question)
    faults = _misshapen(reply, said, like=asked)
    wanted = set(_content(asked))
    if len(wanted & set(_content(said))) < MIN_ON_TOPIC * min(len(wanted), 10):
        faults.append("does not name what the question is about")
    if not {word for word in said if word[-1].isdigit()} <= set(asked):
        faults.append("has numbers of its own")
    return faults


def _misshapen(reply: str, said: Sequence[str], *, like: Sequence[str]) -> list[str]:
    if not said:
        return ["says nothing"]
    faults = []
    if len(said) > MAX_LONGER * len(like) + MAX_MORE_WORDS:
        faults.append("talks on")
    if _repeats(said) > _repeats(like):
        faults.append("repeats itself")
    if reply.rstrip("\"')* ")[-1:] not in {".", "!", "?"}:
        faults.append("does not end with a whole sentence")
    return faults


def _repeats(words: Sequence[str]) -> int:
    """How many runs of four words were there before; a reference may have some of its own."""
    fours = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    return len(fours) - len(set(fours))


def _words(text: str) -> list[str]:
    plain = _STEP_MARKER.sub("", text.replace("\u2019", "'").replace("\u2212", "-")).lower()
    return [_NUMBER_WORDS.get(word, word).removesuffix("'s") for word in _WORD.findall(plain)]


def _stem(word: str) -> str:
    """The word without its ending: `heats`, `heating` and `heated` are one; no dictionary, so `hotter` is not `hot`."""
    if word.endswith("ies") and len(word) > 4:
        word = f"{word[:-3]}y"
    return _DOUBLED.sub(r"\1", _SUFFIX.sub("", word))


def _content(words: Iterable[str]) -> list[str]:
    return [_stem(word) for word in words if _is_spoken(word) and word not in _STOPWORDS and not _negates(word)]


def _is_spoken(word: str) -> bool:
    """Whether it is a word or a number, rather than an operator."""
    return word[-1].isalnum()


def _negates(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")


def _pivots(words: Iterable[str]) -> list[str]:
    """What flips a meaning when it is left out, added or swapped, in order."""
    return [
        "not" if _negates(word) else _stem(word)
        for word in words
        if _negates(word) or word[-1].isdigit() or not _is_spoken(word) or _stem(word) in _POLE_STEMS
    ]


_POLE_STEMS = frozenset(map(_stem, _POLES))


def _units(words: Sequence[str]) -> set[tuple[str, str]]:
    """Each number with the content word right after it."""
    return {
        (number, _stem(unit))
        for number, unit in itertools.pairwise(words)
        if number[-1].isdigit() and unit not in _STOPWORDS and not unit[-1].isdigit()
    }


def _says_yes_or_no(words: Sequence[str]) -> str | None:
    return words[0] if words and words[0] in {"yes", "no"} else None


def _new_share(words: Sequence[str], known: Sequence[str]) -> float:
    content, allowed = _content(words), set(_content(known))
    return sum(word not in allowed for word in content) / max(len(content), 1)


def _is_within(parts: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether the parts occur in the whole in this order, other things between them or not."""
    left = iter(whole)
    return all(part in left for part in parts)


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = lengths[:]
        for place, against in enumerate(other):
            lengths[place + 1] = before[place] + 1 if word == against else max(before[place + 1], lengths[place])
    return lengths[-1]
