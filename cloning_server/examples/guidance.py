"""How much guidance a student asks for in their answers."""

import re
from collections.abc import Sequence

from cloning_server.clone import BaselineResponse
from cloning_server.examples.verdicts import ResponseVerdict, verdict_of
from mesh.tutoring.policy import ENOUGH_ANSWERS, ENOUGH_WITHOUT_REQUEST, Guidance, GuidanceLevel

# Of 1,774 answers of pupils of grades 3 to 6 (SciEntsBank), 6 ask: one answer in seven is far more, but once may be
# chance.
_MUCH_INTERVAL, _MUCH_REQUESTS = 7, 2
_LITTLE_SHARE = 0.025

# Of the student: "scientists do not know why" and "the boy was not sure" ask nothing, nor does "I don't get wet".
_UNKNOWING = (
    r"i (?:really |still )?(?:do not|don'?t) (?:know|understand|get(?= (?:it|this|that|how|why|what)\b|\W*$))"
    r"|idk|dunno|i have no idea|i'?m not sure|i am not sure|i forgot"
)
# At the start of an answer, the student leaves out that it is they who do not know.
_UNKNOWING_OPENING = (
    rf"(?:(?:sorry|um+|well|but|because) )?(?:{_UNKNOWING}|(?:do not|don'?t) (?:know|understand)|no idea|not sure)"
)
_REQUEST = re.compile(
    rf"\b(?:{_UNKNOWING}|i need help|(?:can|could|would) you (?:please )?(?:help|explain|tell|show)"
    r"|help me(?: please)?(?=\W*$)|please (?:help|explain|tell|show)|what do you mean"
    r"|how do (?:i|you) (?:do|solve|start))\b"
)
# Over words with one space between them, as runs of optional blank space take quadratic time on text that is nearly
# blank.
_OPENING = re.compile(rf"(?:{_UNKNOWING_OPENING})\b")
_NOTHING_ELSE = re.compile(rf"(?:{_UNKNOWING_OPENING}|n a)(?: (?:it|this))?")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
# What stands where no answer is. Other signs, such as "<", may be answers.
_NO_ANSWER = frozenset(" ?!.,-_\u2013\u2014\u2026/")


def is_blank(answer: str) -> bool:
    """Whether an answer says nothing, or only that the student does not know."""
    return _NO_ANSWER.issuperset(_plain(answer)) or _NOTHING_ELSE.fullmatch(_words(answer)) is not None


def after_unknowing(answer: str) -> str | None:
    """Returns what follows where an answer begins with that the student does not know; None if it begins otherwise."""
    words = _words(answer)
    opening = _OPENING.match(words)
    return words[opening.end() :] if opening else None


def guidance_of(responses: Sequence[BaselineResponse], *, best_score: float) -> Guidance:
    """Counts the answers that ask something, ask for help, say that the student does not know, or are blank.

    A right answer asks for nothing, whatever its words: the question mark may be the answer.
    """
    requests = sum(
        _asks(response.student_answer)
        for response in responses
        if verdict_of(response, best_score=best_score) is not ResponseVerdict.CORRECT
    )
    return Guidance(level=_level_of(requests, len(responses)), answers=len(responses), requests=requests)


def _level_of(requests: int, answers: int) -> GuidanceLevel:
    if answers < (ENOUGH_ANSWERS if requests else ENOUGH_WITHOUT_REQUEST):
        return GuidanceLevel.UNKNOWN
    if requests >= _MUCH_REQUESTS and requests * _MUCH_INTERVAL >= answers:
        return GuidanceLevel.MUCH
    return GuidanceLevel.LITTLE if requests <= _LITTLE_SHARE * answers else GuidanceLevel.USUAL


def _asks(answer: str) -> bool:
    plain = _plain(answer)
    return (
        is_blank(answer)
        or plain.endswith("?")
        or _REQUEST.search(plain) is not None
        or _OPENING.match(_words(answer)) is not None
    )


def _words(answer: str) -> str:
    return " ".join(_WORD.findall(_plain(answer)))


def _plain(answer: str) -> str:
    return " ".join(answer.lower().replace("\u2019", "'").split())
