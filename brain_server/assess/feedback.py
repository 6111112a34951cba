"""Feedback to a student on an answer, for a given verdict.

The schema depends on the verdict, so that feedback can't contradict it: a wrong answer has no strengths, an excellent
one has nothing to improve. Lists and texts have a maximum length, so that they always end.
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

# The end of a sentence, with closing quotes and brackets.
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Feedback to a student.

    Attributes:
        feedback: A comment on the answer.
        strengths: What the answer got right.
        areas_for_improvement: What the answer missed.
        next_steps: What the student should do next.
    """

    feedback: str
    strengths: tuple[str, ...]
    areas_for_improvement: tuple[str, ...]
    next_steps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Brief:
    """What feedback of a level looks like.

    Attributes:
        verdict: The verdict in words, for the prompt.
        strengths: Fewest and most strengths to name.
        areas: Fewest and most areas for improvement to name.
        example: An answer of this level by `_EXAMPLE_CRITERIA`, and feedback on it.
    """

    verdict: str
    strengths: tuple[int, int]
    areas: tuple[int, int]
    example: tuple[str, Feedback]


# Without an example to follow, the default base model fills the schema with numbers and brackets.
_EXAMPLE_CRITERIA = Criteria(
    question="Why do we see lightning before we hear thunder?",
    reference_answer="Light travels much faster than sound.",
)
_BRIEFS: Mapping[Level, _Brief] = MappingProxyType(
    {
        Level.EXCELLENT: _Brief(
            verdict="The answer is correct.",
            strengths=(1, 2),
            areas=(0, 0),
            example=(
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
            example=(
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
            example=(
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
            example=(
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
    """Returns the JSON schema of feedback for a level."""
    brief = _BRIEFS[level]
    properties = {
        "feedback": _text_schema(),
        "strengths": _list_schema(*brief.strengths),
        "areas_for_improvement": _list_schema(*brief.areas),
        "next_steps": _text_schema(),
    }
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    )


def prompt_for(answer: str, criteria: Criteria, *, level: Level, profile: StudentProfile) -> Prompt:
    """Returns the prompt for feedback: the student's accommodations, an example, the answer and its verdict."""
    example_answer, example_feedback = _BRIEFS[level].example
    turns = (
        _request(example_answer, _EXAMPLE_CRITERIA, level=level),
        Turn(role=Role.TUTOR, text=json.dumps(asdict(example_feedback))),
        _request(answer, criteria, level=level),
    )
    return Prompt(profile=profile, turns=turns)


def parse(text: str) -> Feedback:
    """Parses a reply under the schema. A text that was cut off at its maximum length ends with its last whole sentence.

    Raises:
        ValueError: It does not satisfy the schema; a reply that an engine constrained always does.
    """
    feedback = _PARSER.validate_json(text)
    return Feedback(
        feedback=_whole_sentences(feedback.feedback),
        strengths=tuple(_whole_sentences(strength) for strength in feedback.strengths if strength.strip()),
        areas_for_improvement=tuple(_whole_sentences(area) for area in feedback.areas_for_improvement if area.strip()),
        next_steps=_whole_sentences(feedback.next_steps),
    )


def _request(answer: str, criteria: Criteria, *, level: Level) -> Turn:
    text = (
        f"{criteria.described}\nStudent's answer: {one_line(answer)}\n{_BRIEFS[level].verdict}\n"
        "Write feedback to the student as JSON: feedback, strengths, areas_for_improvement, next_steps."
    )
    return Turn(role=Role.STUDENT, text=text)


def _text_schema() -> dict[str, object]:
    return {"type": "string", "maxLength": MAX_TEXT_CHARS}


def _list_schema(fewest: int, most: int) -> dict[str, object]:
    return {"type": "array", "items": _text_schema(), "minItems": fewest, "maxItems": most}


def _whole_sentences(text: str) -> str:
    """Returns the text up to the end of its last whole sentence if it was cut off at its maximum length, else all."""
    text = text.strip()
    if len(text) < MAX_TEXT_CHARS - 1:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text
