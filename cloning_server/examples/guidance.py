"""How much guidance a student asks for in their answers."""

import re
from collections.abc import Sequence

from cloning_server.clone import BaselineResponse
from mesh.tutoring.policy import ENOUGH_ANSWERS, Guidance, GuidanceLevel

# Of 1,774 answers of pupils of grades 3 to 6 (SciEntsBank), 6 ask: one answer in seven is far more, but once may be
# chance.
_MUCH_SHARE, _MUCH_REQUESTS = 0.15, 2
# That none of so many answers asks says something; that none of fewer does, little.
_LITTLE_SHARE, _LITTLE_ANSWERS = 0.025, 12

_UNKNOWING = (
    r"i (?:really )?(?:do not|don'?t) (?:know|understand|get)|(?:do not|don'?t) know|idk|dunno|no idea"
    r"|i'?m not sure|i am not sure|not sure|i forgot"
)
_REQUEST = re.compile(
    rf"\b(?:{_UNKNOWING}|i need help|(?:can|could|would) you (?:please )?(?:help|explain|tell|show)"
    r"|help me(?: please)?(?=\W*$)|please (?:help|explain|tell|show)|what do you mean"
    r"|how do (?:i|you) (?:do|solve|start))\b"
)
# Nothing but that the student does not know. Over words with one space between them, as runs of optional blank space
# take quadratic time on text that is nearly blank.
_UNKNOWING_ALONE = re.compile(rf"(?:(?:sorry|um+|well|but|because) )?(?:{_UNKNOWING}|n a|na)(?: (?:it|this))?")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
# What stands where no answer is. Other signs, such as "<", may be answers.
_NO_ANSWER = frozenset(" ?!.,-_\u2013\u2014\u2026/")


def is_blank(answer: str) -> bool:
    """Whether an answer says nothing, or only that the student does not know."""
    plain = _plain(answer)
    return _NO_ANSWER.issuperset(plain) or _UNKNOWING_ALONE.fullmatch(" ".join(_WORD.findall(plain))) is not None


def guidance_of(responses: Sequence[BaselineResponse]) -> Guidance:
    """Counts the answers that ask something, ask for help, say that the student does not know, or are blank."""
    requests = sum(_asks(response.student_answer) for response in responses)
    return Guidance(level=_level_of(requests, len(responses)), answers=len(responses), requests=requests)


def _level_of(requests: int, answers: int) -> GuidanceLevel:
    if answers < ENOUGH_ANSWERS:
        return GuidanceLevel.UNKNOWN
    if requests >= max(_MUCH_REQUESTS, _MUCH_SHARE * answers):
        return GuidanceLevel.MUCH
    is_little = answers >= _LITTLE_ANSWERS and requests <= _LITTLE_SHARE * answers
    return GuidanceLevel.LITTLE if is_little else GuidanceLevel.USUAL


def _asks(answer: str) -> bool:
    plain = _plain(answer)
    return is_blank(answer) or plain.endswith("?") or _REQUEST.search(plain) is not None


def _plain(answer: str) -> str:
    return " ".join(answer.lower().replace("\u2019", "'").split())
