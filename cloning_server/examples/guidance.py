"""How much guidance a student asks for in their answers."""

import re
from collections.abc import Sequence

from cloning_server.clone import BaselineResponse
from cloning_server.examples.blank_answers import UNKNOWING, after_unknowing, is_blank, plain
from cloning_server.examples.verdicts import ResponseVerdict, verdict_of
from mesh.tutoring.policy import ENOUGH_ANSWERS, ENOUGH_WITHOUT_REQUEST, Guidance, GuidanceLevel

# Of 1,774 answers of pupils of grades 3 to 6 (SciEntsBank), 6 ask: one answer in seven is far more, but once may be
# chance.
_MUCH_INTERVAL, _MUCH_REQUESTS = 7, 2
_LITTLE_SHARE = 0.025

_REQUEST = re.compile(
    rf"\b(?:{UNKNOWING}|i need help|(?:can|could|would) you (?:please )?(?:help|explain|tell|show)"
    r"|help me(?: please)?(?=\W*$)|please (?:help|explain|tell|show)|what do you mean"
    r"|how do (?:i|you) (?:do|solve|start))\b"
)


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
    text = plain(answer)
    return (
        is_blank(answer)
        or text.endswith("?")
        or _REQUEST.search(text) is not None
        or after_unknowing(answer) is not None
    )
