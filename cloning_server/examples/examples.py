"""What is learned: from a baseline's responses to training conversations.

An example is the prompt that this student's model will read when it serves, and what a tutor says to it. The reply is
the teacher's feedback where there is any; otherwise it is to be distilled, and what that takes is a `Lesson`.

Knows nothing of how replies are distilled or how a model is trained.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256

from transformers import PreTrainedTokenizerBase

from cloning_server.clone import Baseline, BaselineResponse
from mesh.adapters.manifest import Examples
from mesh.errors import NoTrainableExamples
from mesh.lm.chat import Example, Prompt, Role, Turn, encode_example
from mesh.tutoring.profile import StudentProfile

# A score from here on, of 100, is a right answer where `is_correct` is not told.
PASS_SCORE = 50.0
# Longer conversations are dropped: they would set the memory that every batch needs.
MAX_EXAMPLE_TOKENS = 1024


class AnswerVerdict(StrEnum):
    """Whether the student's answer was right."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNKNOWN = "unknown"


class Band(StrEnum):
    """The student's record in a skill; the lower it is, the more scaffolding a reply gives."""

    STRUGGLING = "struggling"
    DEVELOPING = "developing"
    SECURE = "secure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """All that a distilled reply depends on; two students with the same lesson are told the same.

    The student's own answer is not part of it, so that no student's words are taught to another.

    Attributes:
        profile: The student's, with the response's own subject.
        question: What was asked.
        reference: The right answer; empty if it is not known.
        skill: What the item tests.
        verdict: How the student's answer was.
        band: How the student does in this skill.
        is_guided: Whether the student gets fewer than half of all items right, and is asked where it is hard.
        is_private: Whether the reference is the student's own answer; such a lesson is never shared.
    """

    profile: StudentProfile
    question: str
    reference: str
    skill: str
    verdict: AnswerVerdict
    band: Band
    is_guided: bool
    is_private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A conversation that may still lack its reply.

    Attributes:
        item: What the split keeps together: the question, its case and spacing aside.
        prompt: What the student's model will read.
        feedback: The teacher's own reply; empty if there is none.
        lesson: What a reply is distilled from where there is none.
    """

    item: str
    prompt: Prompt
    feedback: str
    lesson: Lesson


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """The examples, split: no question is on both sides."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    counts: Examples


def draft_examples(baseline: Baseline, *, record: Sequence[BaselineResponse] | None = None) -> tuple[Draft, ...]:
    """A draft a response, in their order.

    Args:
        baseline: The responses.
        record: What the student's standing is judged by, where it is not the baseline's own responses.
    """
    judged_by = baseline.responses if record is None else record
    bands, is_guided = _bands_of(judged_by), _is_guided(judged_by)
    return tuple(
        _draft(baseline.profile, response, band=bands.get(_skill_of(response), Band.DEVELOPING), is_guided=is_guided)
        for response in baseline.responses
    )


def prompt_of(profile: StudentProfile, response: BaselineResponse) -> Prompt:
    """The prompt of an example: what the brain would render if the student sent question and answer."""
    answer = response.student_answer.strip()
    text = f"{response.question.strip()}\n\nMy answer: {answer}" if answer else response.question.strip()
    return Prompt(profile=_profile_of(profile, response), turns=(Turn(role=Role.STUDENT, text=text),))


def verdict_of(response: BaselineResponse) -> AnswerVerdict:
    """The verdict that the response tells: `is_correct`, else its score."""
    if response.is_correct is not None:
        return AnswerVerdict.CORRECT if response.is_correct else AnswerVerdict.INCORRECT
    if response.score is not None:
        return AnswerVerdict.CORRECT if response.score >= PASS_SCORE else AnswerVerdict.INCORRECT
    return AnswerVerdict.UNKNOWN


def band_of(*, correct: int, judged: int) -> Band:
    """The band of a record, by Laplace's rule of succession: few answers say little, so they stay in the middle."""
    chance = (correct + 1) / (judged + 2)
    if chance < 1 / 3:
        return Band.STRUGGLING
    return Band.SECURE if chance > 2 / 3 else Band.DEVELOPING


def complete_examples(
    drafts: Sequence[Draft], replies: Mapping[Lesson, str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[str, Example]], Examples]:
    """The examples with their items, and the counts (the split still at zero). The teacher's feedback wins.

    A draft without a reply, or one that is too long, is dropped and counted.
    """
    made: list[tuple[str, Example]] = []
    origins: Counter[str] = Counter()
    for draft in drafts:
        reply = draft.feedback or replies.get(draft.lesson, "")
        example = encode_example(tokenizer, draft.prompt, reply) if reply else None
        if example is None or len(example.tokens) > MAX_EXAMPLE_TOKENS:
            origins["dropped"] += 1
            continue
        origins["feedback" if draft.feedback else "distilled"] += 1
        made.append((draft.item, example))
    counts = Examples(
        given=len(drafts),
        feedback=origins["feedback"],
        distilled=origins["distilled"],
        dropped=origins["dropped"],
        train=0,
        heldout=0,
    )
    return made, counts


def split_examples(
    made: Sequence[tuple[str, Example]], counts: Examples, *, heldout_share: float, seed: int
) -> ExampleSet:
    """Keeps a share of the items apart, at least one; all examples of an item are on one side.

    Which ones depends on the items themselves, not on which others there are: what a student's next version is measured
    by was, as far as may be, not learned by the one before.

    Raises:
        NoTrainableExamples: If there are not two different items.
    """
    items = sorted({item for item, _ in made}, key=lambda item: sha256(f"{seed} {item}".encode()).digest())
    if len(items) < 2:
        raise NoTrainableExamples(responses=counts.given, usable=len(items))
    heldout_items = set(items[: min(max(1, round(heldout_share * len(items))), len(items) - 1)])
    train = tuple(example for item, example in made if item not in heldout_items)
    heldout = tuple(example for item, example in made if item in heldout_items)
    return ExampleSet(train=train, heldout=heldout, counts=replace(counts, train=len(train), heldout=len(heldout)))


def _draft(profile: StudentProfile, response: BaselineResponse, *, band: Band, is_guided: bool) -> Draft:
    verdict = verdict_of(response)
    reference = response.reference_answer.strip()
    is_private = not reference and verdict is AnswerVerdict.CORRECT
    lesson = Lesson(
        profile=_profile_of(profile, response),
        question=response.question.strip(),
        # A right answer is as good a reference as any.
        reference=response.student_answer.strip() if is_private else reference,
        skill=response.skill,
        verdict=verdict,
        band=band,
        is_guided=is_guided,
        is_private=is_private,
    )
    return Draft(
        item=" ".join(response.question.split()).casefold(),
        prompt=prompt_of(profile, response),
        feedback=response.teacher_feedback.strip(),
        lesson=lesson,
    )


def _profile_of(profile: StudentProfile, response: BaselineResponse) -> StudentProfile:
    return replace(profile, subject=response.subject or profile.subject)


def _skill_of(response: BaselineResponse) -> tuple[str, str]:
    return response.subject, response.skill


def _is_guided(responses: Iterable[BaselineResponse]) -> bool:
    verdicts = Counter(map(verdict_of, responses))
    return verdicts[AnswerVerdict.CORRECT] < verdicts[AnswerVerdict.INCORRECT]


def _bands_of(responses: Iterable[BaselineResponse]) -> dict[tuple[str, str], Band]:
    """The band of each skill; responses without a skill say nothing of any, so they get the middle one."""
    records: dict[tuple[str, str], Counter[AnswerVerdict]] = {}
    for response in responses:
        records.setdefault(_skill_of(response), Counter())[verdict_of(response)] += 1
    return {
        skill: band_of(
            correct=record[AnswerVerdict.CORRECT],
            judged=record[AnswerVerdict.CORRECT] + record[AnswerVerdict.INCORRECT],
        )
        if skill[1]
        else Band.DEVELOPING
        for skill, record in records.items()
    }
