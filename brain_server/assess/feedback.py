"""Feedback to a student on an answer, for a given verdict.

The schema depends on the verdict, so that feedback can't contradict it: a wrong answer has no strengths, an excellent
one has nothing to improve. Each text begins with words and has a maximum length, so that it says something and ends.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from pydantic import TypeAdapter

from brain_server.assess.grading import Level
from mesh.lm.chat import Prompt, Role, Turn
from mesh.lm.feedback import Feedback, feedback_prompt
from mesh.tutoring.assessment import AnswerAssessment
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.form import split_sentences
from mesh.tutoring.profile import StudentProfile

# Far above what the texts need, so that the schema and not this ends them.
MAX_TOKENS = 512
# Characters of an answer that the feedback reads; the grader reads all of it.
_MAX_ANSWER_CHARS = 1200

# The end of a sentence, with closing quotes and brackets.
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
# Begins with a capitalised word and has three to twenty-one words: two short sentences, and never brackets alone.
_TEXT_PATTERN = r"^[A-Z][a-z']{0,14}( [^ \"\\\x00-\x1f]{1,16}){2,20}$"

# Fewest and most strengths, and areas for improvement, by level.
_COUNTS: Mapping[Level, tuple[tuple[int, int], tuple[int, int]]] = MappingProxyType(
    {
        Level.EXCELLENT: ((1, 1), (0, 0)),
        Level.GOOD: ((1, 1), (1, 1)),
        Level.DEVELOPING: ((1, 1), (1, 1)),
        Level.BEGINNING: ((0, 0), (1, 1)),
    }
)
# For a Main Brain without a tutor. Without an example, the default base model fills the schema with brackets.
_EXAMPLE_CRITERIA = Criteria(
    question="Why do we see lightning before we hear thunder?",
    reference_answer="Light travels much faster than sound.",
)
_EXAMPLES: Mapping[Level, tuple[str, Feedback]] = MappingProxyType(
    {
        Level.EXCELLENT: (
            "Light is much faster than sound.",
            Feedback(
                feedback="Your answer is right and clear.",
                strengths=("You compare how fast light and sound travel.",),
                areas_for_improvement=(),
                next_steps="Find out how far away a storm is by counting the seconds.",
            ),
        ),
        Level.GOOD: (
            "Light is fast.",
            Feedback(
                feedback="Your answer is nearly complete.",
                strengths=("You know that light is fast.",),
                areas_for_improvement=("Say how fast sound is, too.",),
                next_steps="Write one more sentence that compares light and sound.",
            ),
        ),
        Level.DEVELOPING: (
            "They are not the same speed.",
            Feedback(
                feedback="You have found a part of the answer.",
                strengths=("You noticed that the speeds differ.",),
                areas_for_improvement=("Say which one is faster.",),
                next_steps="Read about the speed of light, then try again.",
            ),
        ),
        Level.BEGINNING: (
            "The thunder comes later.",
            Feedback(
                feedback="Thank you for trying; this does not yet say why.",
                strengths=(),
                areas_for_improvement=("Think about how light and sound travel.",),
                next_steps="Watch a friend clap from far away, and notice what comes first.",
            ),
        ),
    }
)
_PARSER = TypeAdapter(Feedback)


def schema_for(level: Level) -> str:
    """Returns the JSON schema of feedback for a level."""
    strengths, areas = _COUNTS[level]
    properties = {
        "feedback": _text_schema(),
        "strengths": _list_schema(*strengths),
        "areas_for_improvement": _list_schema(*areas),
        "next_steps": _text_schema(),
    }
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    )


def prompt_for(
    answer: str, criteria: Criteria, *, level: Level, profile: StudentProfile, with_example: bool = False
) -> Prompt:
    """Returns the prompt for feedback of a level; with an example for a Main Brain that was not taught the form."""
    assessment = AnswerAssessment(verdict=level.verdict, reference_answer=criteria.reference_answer)
    prompt = feedback_prompt(answer[:_MAX_ANSWER_CHARS], criteria, assessment=assessment, profile=profile)
    if not with_example:
        return prompt
    example_answer, example = _EXAMPLES[level]
    example_prompt = feedback_prompt(example_answer, _EXAMPLE_CRITERIA, assessment=assessment, profile=profile)
    turns = (*example_prompt.turns, Turn(role=Role.TUTOR, text=example.to_json()), *prompt.turns)
    return Prompt(profile=profile, turns=turns, assessment=assessment)


def parse(text: str) -> Feedback:
    """Parses a reply under the schema. A text that has more than its longest length ends with its last whole sentence.

    Raises:
        ValueError: It does not satisfy the schema; a reply that an engine constrained always does.
    """
    feedback = _PARSER.validate_json(text)
    return Feedback(
        feedback=_whole_sentences(feedback.feedback),
        strengths=tuple(_whole_sentences(strength) for strength in feedback.strengths),
        areas_for_improvement=tuple(_whole_sentences(area) for area in feedback.areas_for_improvement),
        next_steps=_whole_sentences(feedback.next_steps),
    )


def repeats_itself(feedback: Feedback) -> bool:
    """Whether a sentence occurs twice in the texts of a feedback."""
    sentences = [_key(sentence) for text in _texts(feedback) for sentence in split_sentences(text)]
    return len(set(sentences)) < len(sentences)


def without_repeats(feedback: Feedback) -> Feedback:
    """Returns the feedback with each sentence once.

    The comment and the next step are never left empty: where they are one and the same sentence, the next step takes
    the comment's second one, or a sentence of the lists. A list loses a text that has no other sentence.
    """
    comment, *spare = _distinct(split_sentences(feedback.feedback))
    sources = [feedback.next_steps, " ".join(spare), *feedback.areas_for_improvement, *feedback.strengths]
    candidates = ([text for text in split_sentences(source) if _key(text) != _key(comment)] for source in sources)
    # With the same words in every text, as no grammar can rule out, the next step repeats the comment.
    next_steps = next((" ".join(_distinct(sentences)) for sentences in candidates if sentences), feedback.next_steps)
    earlier_keys = {_key(comment), *map(_key, split_sentences(next_steps))}

    def fresh(sentences: Iterable[str]) -> str:
        return " ".join(sentence for sentence in sentences if not _is_known(sentence, earlier_keys))

    return Feedback(
        feedback=" ".join(filter(None, [comment, fresh(spare)])),
        strengths=tuple(filter(None, (fresh(split_sentences(text)) for text in feedback.strengths))),
        areas_for_improvement=tuple(
            filter(None, (fresh(split_sentences(text)) for text in feedback.areas_for_improvement))
        ),
        next_steps=next_steps,
    )


def _distinct(sentences: Iterable[str]) -> list[str]:
    """Returns the sentences without those that say the words of an earlier one."""
    by_key: dict[str, str] = {}
    for sentence in sentences:
        by_key.setdefault(_key(sentence), sentence)
    return list(by_key.values())


def _is_known(sentence: str, earlier_keys: set[str]) -> bool:
    """Whether a sentence occurred before; from now on, it has."""
    key = _key(sentence)
    is_known = key in earlier_keys
    earlier_keys.add(key)
    return is_known


def _texts(feedback: Feedback) -> Iterator[str]:
    yield feedback.feedback
    yield from feedback.strengths
    yield from feedback.areas_for_improvement
    yield feedback.next_steps


def _key(sentence: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", sentence.lower()))


def _text_schema() -> dict[str, object]:
    return {"type": "string", "pattern": _TEXT_PATTERN}


def _list_schema(fewest: int, most: int) -> dict[str, object]:
    return {"type": "array", "items": _text_schema(), "minItems": fewest, "maxItems": most}


def _whole_sentences(text: str) -> str:
    """Returns the text up to the end of its last whole sentence, if it has one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text.strip())]
    return text.strip()[: ends[-1]] if ends else text.strip()
