"""The usual kind of a student's mistakes.

An answer has at most one kind, by the first rule that holds. Scores are the best evidence: a teacher who gives a part
of the points says that the answer is incomplete, also if it counts as right, and one who gives parts elsewhere but none
here, to an answer on the topic, says that it goes against the right one. Without such scores the words decide: they see
about two in five of the answers that people call contradictory.

Does not judge whether an answer is right.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final

from cloning_server.clone import BaselineResponse
from cloning_server.examples.blank_answers import after_unknowing, is_blank
from cloning_server.examples.verdicts import ResponseVerdict, verdict_of
from mesh.tutoring.overlap import count_like, denies, misspelt_pairs, stems_of
from mesh.tutoring.policy import ENOUGH_ANSWERS, MistakeKind, Mistakes

# A kind is the usual one if it has at least 3 answers, 10 % of the judged ones and 40 % of those with a kind.
_FEWEST, _LEAST_SHARE, _LEAST_SHARE_OF_KINDS = 3, 0.1, 0.4
# An answer with this share of the points lacks nothing that is worth a habit; below, a part is missing.
_WHOLE_SHARE = 0.9
# Without partial scores: one over the share of the contradictory answers that words show.
_REVERSED_WEIGHT = 2.5
# An answer of fewer words that mean something is wrong, but not about something else.
_OFF_TOPIC_WORDS = 2
# A right answer of fewer words that mean something has no parts to leave out.
_PARTS_WORDS = 3
# Shorter words are too alike to be misspellings of each other.
_MISSPELT_LETTERS = 6

_OPPOSITES: Final = """
    more less, more fewer, most least, increase decrease, increases decreases, increased decreased,
    longer shorter, long short, higher lower, high low, faster slower, fast slow, larger smaller,
    bigger smaller, big small, large small, heavier lighter, heavy light, hotter colder, hot cold,
    warmer cooler, warm cool, up down, top bottom, before after, above below, over under, attract repel,
    attracts repels, same different, always never, all none, yes no, true false, open closed, positive negative,
    north south, east west, louder softer, louder quieter, loud soft, loud quiet, add subtract, multiply divide,
    agree disagree, correct incorrect, harder softer, hard soft, stronger weaker, strong weak, wet dry,
    float sink, floats sinks, absorb reflect, absorbs reflects, closer farther, closer further, tighter looser,
    thicker thinner, steeper flatter, rough smooth, can cannot, begin end, first last, win lose, rich poor,
    old new, early late, gain lose, rise fall, rises falls, expand contract, expands contracts
"""
_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_LETTERS = re.compile(r"[a-z]+")
# British and American spelling: "behaviour" and "behavior", "organise" and "organize".
_VARIANTS: Final = ((re.compile("our"), "or"), (re.compile("(?<=[iy])s(?=e|i|a)"), "z"))


def mistakes_of(responses: Sequence[BaselineResponse], *, best_score: float) -> Mistakes:
    """Counts the kinds of mistakes among the judged responses, whose best score is given, and tells the usual one."""
    verdicts = [(response, verdict_of(response, best_score=best_score)) for response in responses]
    right = [response for response, verdict in verdicts if verdict is ResponseVerdict.CORRECT]
    wrong = [response for response, verdict in verdicts if verdict is ResponseVerdict.INCORRECT]
    gives_parts = any(_has_part(response, best_score) for response, _ in verdicts)
    spelling = _known_words(responses)
    kinds = Counter(
        [
            *(_kind_of_right(response, best_score=best_score, spelling=spelling) for response in right),
            *(_kind_of_wrong(response, gives_parts=gives_parts, spelling=spelling) for response in wrong),
        ]
    )
    del kinds[MistakeKind.NONE]
    judged = len(right) + len(wrong)
    return Mistakes(
        kind=_usual_kind(kinds, judged=judged, gives_parts=gives_parts),
        judged=judged,
        wrong=len(wrong),
        blank=kinds[MistakeKind.BLANK],
        incomplete=kinds[MistakeKind.INCOMPLETE],
        reversed=kinds[MistakeKind.REVERSED],
        off_topic=kinds[MistakeKind.OFF_TOPIC],
        misspelt=kinds[MistakeKind.MISSPELT],
    )


def _usual_kind(kinds: Mapping[MistakeKind, int], *, judged: int, gives_parts: bool) -> MistakeKind:
    if judged < ENOUGH_ANSWERS:
        return MistakeKind.UNKNOWN
    weights = {kind: float(count) for kind, count in kinds.items() if count}
    if MistakeKind.REVERSED in weights and not gives_parts:
        weights[MistakeKind.REVERSED] *= _REVERSED_WEIGHT
    # Among equals, the order of the kinds decides, so that the same answers always give the same kind.
    usual = max(sorted(weights), key=lambda kind: weights[kind], default=MistakeKind.NONE)
    is_frequent = kinds.get(usual, 0) >= max(_FEWEST, _LEAST_SHARE * judged)
    is_typical = weights.get(usual, 0.0) >= _LEAST_SHARE_OF_KINDS * sum(weights.values())
    return usual if is_frequent and is_typical else MistakeKind.NONE


def _has_part(response: BaselineResponse, best_score: float) -> bool:
    """Whether the answer has a part of the points.

    Not if the response tells that it is right: such scores may be out of another best score, which nobody has to tell
    where no score decides.
    """
    return response.is_correct is not True and 0 < (response.score or 0) < _WHOLE_SHARE * best_score


def _kind_of_right(response: BaselineResponse, *, best_score: float, spelling: AbstractSet[str]) -> MistakeKind:
    """The kind of what is amiss in a right answer; `NONE` if nothing is."""
    if _has_part(response, best_score) and not _is_right_but_misspelt(response, spelling):
        return MistakeKind.INCOMPLETE
    return MistakeKind.MISSPELT if _misspells(response, spelling) else MistakeKind.NONE


def _kind_of_wrong(response: BaselineResponse, *, gives_parts: bool, spelling: AbstractSet[str]) -> MistakeKind:
    """The kind of a wrong answer; `NONE` if it is of no kind."""
    if _gives_up(response):
        return MistakeKind.BLANK
    # "I'm not sure, but" denies nothing of what follows.
    response = replace(response, student_answer=after_unknowing(response.student_answer) or response.student_answer)
    if _is_right_but_misspelt(response, spelling):
        return MistakeKind.MISSPELT
    if gives_parts and response.score:
        return MistakeKind.INCOMPLETE
    if _is_number_reversed(response.student_answer, response.reference_answer):
        return MistakeKind.REVERSED
    return _kind_by_words(response, has_no_points=gives_parts and response.score == 0)


def _gives_up(response: BaselineResponse) -> bool:
    """Whether the answer says nothing, or that the student does not know and then nothing that the right one says."""
    if is_blank(response.student_answer):
        return True
    rest = after_unknowing(response.student_answer)
    if rest is None or _says_opposite(rest, response.reference_answer):
        return False
    stems, expected, question = stems_of(rest), stems_of(response.reference_answer), stems_of(response.question)
    return not count_like(stems, expected - question) if expected else stems <= question


def _is_right_but_misspelt(response: BaselineResponse, spelling: AbstractSet[str]) -> bool:
    """Whether the answer has all words of the right one and contradicts none, but misspells one."""
    answer, reference = response.student_answer, response.reference_answer
    expected = stems_of(reference)
    if not expected or count_like(expected, stems_of(answer)) < len(expected) or _contradicts(answer, reference):
        return False
    return _misspells(response, spelling)


def _kind_by_words(response: BaselineResponse, *, has_no_points: bool) -> MistakeKind:
    answer, reference = response.student_answer, response.reference_answer
    stems, expected = stems_of(answer), stems_of(reference)
    # An opposite alone is on the topic: "hotter" for "colder".
    if _says_opposite(answer, reference):
        return MistakeKind.REVERSED
    if not count_like(stems, expected | stems_of(response.question)):
        is_number = not _LETTERS.search(answer.lower())
        return MistakeKind.NONE if is_number or len(stems) < _OFF_TOPIC_WORDS else MistakeKind.OFF_TOPIC
    has_words = bool(_LETTERS.search(reference.lower()))
    if has_words and (has_no_points or _contradicts(answer, reference)):
        return MistakeKind.REVERSED
    has_parts = len(expected) >= _PARTS_WORDS and count_like(expected, stems) > 0
    return MistakeKind.INCOMPLETE if has_parts else MistakeKind.NONE


def _contradicts(answer: str, reference: str) -> bool:
    return denies(answer) != denies(reference) or _says_opposite(answer, reference)


def _says_opposite(answer: str, reference: str) -> bool:
    """Whether the answer has the opposite of a word of the right answer instead of it."""
    words, expected = frozenset(_WORD.findall(answer.lower())), frozenset(_WORD.findall(reference.lower()))
    return any(_OPPOSITES_OF[word] & (words - expected) for word in expected - words if word in _OPPOSITES_OF)


def _is_number_reversed(answer: str, reference: str) -> bool:
    """Whether both are a number, and the digits of the one are those of the other, read backwards."""
    digits, expected = answer.strip(), reference.strip()
    return digits.isdecimal() and expected.isdecimal() and digits != expected and digits == expected[::-1]


def _known_words(responses: Sequence[BaselineResponse]) -> AbstractSet[str]:
    """The words of all questions and right answers: what the student may say without a mistake of spelling."""
    texts = (text for response in responses for text in (response.question, response.reference_answer))
    return frozenset(word for text in texts for word in _LETTERS.findall(text.lower()))


def _misspells(response: BaselineResponse, spelling: AbstractSet[str]) -> bool:
    """Whether the answer misspells a long word of question or right answer.

    One edit apart, with the same first and last letter, and a word of no question: "bubbled" for "bubbles" and "sound"
    for "found" are other words.
    """
    rightly_spelt = _long_words(f"{response.question} {response.reference_answer}")
    unknown_words = _long_words(response.student_answer) - spelling
    return any(
        word[0] == other[0] and word[-1] == other[-1] and _american(word) != _american(other)
        for word, other in misspelt_pairs(unknown_words, rightly_spelt)
    )


def _american(word: str) -> str:
    for british, american in _VARIANTS:
        word = british.sub(american, word)
    return word


def _long_words(text: str) -> AbstractSet[str]:
    return {word for word in _LETTERS.findall(text.lower()) if len(word) >= _MISSPELT_LETTERS}


def _opposites_of() -> Mapping[str, AbstractSet[str]]:
    opposites: defaultdict[str, set[str]] = defaultdict(set)
    for pair in _OPPOSITES.split(","):
        word, opposite = pair.split()
        opposites[word].add(opposite)
        opposites[opposite].add(word)
    return opposites


_OPPOSITES_OF: Final = dict(_opposites_of())
