"""Feedback: what to tell a student of an answer, for a verdict that is already known.

The schema follows the verdict, so that feedback can't contradict it: a wrong answer has no list of strengths, an
excellent one no list of what is missing. Lists and texts are bounded, and so always end.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from pydantic import TypeAdapter

from brain_server.assess.grading import Criteria, Level, one_line
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

# Two short sentences.
MAX_TEXT_CHARS = 160
# Texts of about 30 tokens each, at most five of them, and the keys.
MAX_TOKENS = 256

# A sentence's end, and what closes with it.
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What to tell a student.

    Attributes:
        feedback: To the student, of this answer.
        strengths: What the answer got right.
        areas_for_improvement: What it missed.
        next_steps: What to do next.
    """

    feedback: str
    strengths: tuple[str, ...]
    areas_for_improvement: tuple[str, ...]
    next_steps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Brief:
    """What the tutor is told of a level.

    Attributes:
        verdict: In words, as the tutor reads it.
        strengths: Fewest and most to name.
        areas: Fewest and most to name.
        shown: An answer of this level to `_SHOWN`, and feedback on it.
    """

    verdict: str
    strengths: tuple[int, int]
    areas: tuple[int, int]
    shown: tuple[str, Feedback]


# Without an example to follow, the default base model fills the schema with numbers and brackets.
_SHOWN = Criteria(
    question="Why do we see lightning before we hear thunder?",
    reference_answer="Light travels much faster than sound.",
)
_BRIEFS: Mapping[Level, _Brief] = MappingProxyType(
    {
        Level.EXCELLENT: _Brief(
            verdict="The answer is correct.",
            strengths=(1, 2),
            areas=(0, 0),
            shown=(
                "Light is much faster than sound.",
                Feedback(
                    feedback="Your answer is right and clear.",
                    strengths=("You compare how fast light and sound travel.",),
                    areas_for_improvement=(),
                    next_steps="Find out how far away a storm is by counting the seconds.",
                ),
            ),
        ),
        Level.GOOD: _Brief(
            verdict="The answer is mostly correct.",
            strengths=(1, 2),
            areas=(1, 1),
            shown=(
                "Light is fast.",
                Feedback(
                    feedback="Your answer is nearly complete.",
                    strengths=("You know that light is fast.",),
                    areas_for_improvement=("Say how fast sound is, too.",),
                    next_steps="Write one more sentence that compares light and sound.",
                ),
            ),
        ),
        Level.DEVELOPING: _Brief(
            verdict="The answer is partly correct.",
            strengths=(1, 1),
            areas=(1, 2),
            shown=(
                "They are not the same speed.",
                Feedback(
                    feedback="You have found a part of the answer.",
                    strengths=("You noticed that the speeds differ.",),
                    areas_for_improvement=("Say which one is faster.",),
                    next_steps="Read about the speed of light, then try again.",
                ),
            ),
        ),
        Level.BEGINNING: _Brief(
            verdict="The answer is not correct.",
            strengths=(0, 0),
            areas=(1, 2),
            shown=(
                "The thunder comes later.",
                Feedback(
                    feedback="Thank you for trying; this does not yet say why.",
                    strengths=(),
                    areas_for_improvement=("Think about how light and sound travel.",),
                    next_steps="Watch a friend clap from far away, and notice what comes first.",
                ),
            ),
        ),
    }
)
_PARSER = TypeAdapter(Feedback)


def schema_for(level: Level) -> str:
    """The JSON schema of feedback for a level."""
    brief = _BRIEFS[level]
    properties = {
        "feedback": _text(),
        "strengths": _texts(*brief.strengths),
        "areas_for_improvement": _texts(*brief.areas),
        "next_steps": _text(),
    }
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    )


def prompt_for(answer: str, criteria: Criteria, *, level: Level, profile: StudentProfile) -> Prompt:
    """What the base model reads before it writes feedback: the student's accommodations, the answer, the verdict."""
    shown_answer, shown = _BRIEFS[level].shown
    turns = (
        _asked(shown_answer, _SHOWN, level=level),
        Turn(role=Role.TUTOR, text=json.dumps(asdict(shown))),
        _asked(answer, criteria, level=level),
    )
    return Prompt(profile=profile, turns=turns)


def parse(text: str) -> Feedback:
    """Reads what was written under the schema; a text that its bound cut off ends with its last whole sentence.

    Raises:
        ValueError: It does not satisfy the schema, which a constrained reply can't.
    """
    written = _PARSER.validate_json(text)
    return Feedback(
        feedback=_whole(written.feedback),
        strengths=tuple(_whole(one) for one in written.strengths if one.strip()),
        areas_for_improvement=tuple(_whole(one) for one in written.areas_for_improvement if one.strip()),
        next_steps=_whole(written.next_steps),
    )


def _asked(answer: str, criteria: Criteria, *, level: Level) -> Turn:
    text = (
        f"{criteria.described}\nStudent's answer: {one_line(answer)}\n{_BRIEFS[level].verdict}\n"
        "Write feedback to the student as JSON: feedback, strengths, areas_for_improvement, next_steps."
    )
    return Turn(role=Role.STUDENT, text=text)


def _text() -> dict[str, object]:
    return {"type": "string", "maxLength": MAX_TEXT_CHARS}


def _texts(fewest: int, most: int) -> dict[str, object]:
    return {"type": "array", "items": _text(), "minItems": fewest, "maxItems": most}


def _whole(text: str) -> str:
    """The text up to its last sentence's end, if one was cut off at the bound; else as it is."""
    text = text.strip()
    if len(text) < MAX_TEXT_CHARS - 1:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text
