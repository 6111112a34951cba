"""Training examples: conversations made from the responses of a baseline.

An example is a prompt as this student's model will get it when it serves, and a tutor's reply. The reply is the
teacher's feedback if there is any; otherwise it is distilled from a `ReplyBrief`.

Knows nothing of how replies are distilled or how a model is trained.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from cloning_server.clone import DEFAULT_MAX_SCORE, MIN_QUESTIONS, Baseline, BaselineResponse
from mesh.adapters.manifest import Examples
from mesh.errors import NoTrainableExamples
from mesh.lm.chat import Example, Prompt, Role, Turn, encode_example
from mesh.tutoring.arithmetic import same_number
from mesh.tutoring.profile import StudentProfile

# The least score of a right answer, as a share of the best score, if the response does not tell `is_correct`.
PASS_SHARE = 0.5
# Longer conversations are dropped: the longest one decides how much memory a batch needs.
MAX_EXAMPLE_TOKENS = 1024


class ResponseVerdict(StrEnum):
    """Whether the student's answer was right."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNKNOWN = "unknown"


class Band(StrEnum):
    """The student's record in a skill; the lower it is, the more scaffolding a reply gives."""

    STRUGGLING = "struggling"
    DEVELOPING = "developing"
    SECURE = "secure"


# A response and the verdict on it.
_JudgedResponse: TypeAlias = tuple[BaselineResponse, ResponseVerdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyBrief:
    """All that a distilled reply depends on; students with the same brief get the same reply.

    The student's own answer is not part of it, so that no student's words are taught to another.

    Attributes:
        profile: The student's, with the response's own subject.
        question: The question of the item.
        reference: The right answer; empty if it is not known.
        skill: The skill that the item tests.
        verdict: Whether the student's answer was right.
        band: The student's record in this skill.
        is_guided: Whether the student has fewer right answers than wrong ones, and the reply asks what is hard.
        is_private: Whether the reference is the student's own answer; such a brief is never shared.
    """

    profile: StudentProfile
    question: str
    reference: str
    skill: str
    verdict: ResponseVerdict
    band: Band
    is_guided: bool
    is_private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A conversation that may lack its reply.

    Attributes:
        item: Key that the split keeps together: the question, without differences of case and spacing.
        prompt: The prompt of the student's model.
        feedback: The teacher's own reply; empty if there is none.
        brief: The brief to distil a reply from if there is no feedback.
    """

    item: str
    prompt: Prompt
    feedback: str
    brief: ReplyBrief


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """The examples, split: no item is on both sides."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    counts: Examples


def draft_examples(baseline: Baseline, *, record: Sequence[BaselineResponse] | None = None) -> tuple[Draft, ...]:
    """One draft per response, in order.

    Args:
        baseline: The responses.
        record: The responses that the student's bands are computed from, with scores of the same scale; by default the
            baseline's.
    """
    verdicts = _verdicts_of(baseline.responses, best_score=baseline.best_score)
    record_verdicts = verdicts if record is None else _verdicts_of(record, best_score=baseline.best_score)
    bands, is_guided = _bands_of(record_verdicts), _is_guided(record_verdicts)
    return tuple(
        _draft(
            baseline.profile,
            response,
            verdict=verdict,
            band=bands.get(_skill_of(response), Band.DEVELOPING),
            is_guided=is_guided,
        )
        for response, verdict in verdicts
    )


def prompt_of(profile: StudentProfile, response: BaselineResponse) -> Prompt:
    """The prompt of an example, as the brain would render it if the student sent question and answer."""
    answer = response.student_answer.strip()
    text = f"{response.question.strip()}\n\nMy answer: {answer}" if answer else response.question.strip()
    return Prompt(profile=_profile_of(profile, response), turns=(Turn(role=Role.STUDENT, text=text),))


def verdict_of(response: BaselineResponse, *, best_score: float = DEFAULT_MAX_SCORE) -> ResponseVerdict:
    """The verdict on a response: by `is_correct`, otherwise by the score, otherwise by numbers.

    Without `is_correct` and a score, an answer is judged only if it and the reference answer are numbers.

    Args:
        response: The response.
        best_score: The best score that it can have.
    """
    is_right = response.is_correct
    if is_right is None and response.score is not None:
        # Not the share of the best score: it rounds to 0 where that is tiny, and no points are never a right answer.
        is_right = response.score > 0 and response.score / PASS_SHARE >= best_score
    elif is_right is None:
        is_right = same_number(response.reference_answer, response.student_answer)
    if is_right is None:
        return ResponseVerdict.UNKNOWN
    return ResponseVerdict.CORRECT if is_right else ResponseVerdict.INCORRECT


def band_of(*, correct: int, judged: int) -> Band:
    """The band of a record, by Laplace's rule of succession: with few answers it stays in the middle."""
    chance = (correct + 1) / (judged + 2)
    if chance < 1 / 3:
        return Band.STRUGGLING
    return Band.SECURE if chance > 2 / 3 else Band.DEVELOPING


def complete_examples(
    drafts: Sequence[Draft], replies: Mapping[ReplyBrief, str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[str, Example]], Examples]:
    """Adds the replies to drafts; a teacher's feedback takes precedence over a distilled reply.

    A draft without a reply, or one that is too long, is dropped and counted.

    Returns:
        The examples with their items, and the counts; those of the split are 0.
    """
    completed: list[tuple[str, Example]] = []
    origins: Counter[str] = Counter()
    for draft in drafts:
        reply = draft.feedback or replies.get(draft.brief, "")
        example = encode_example(tokenizer, draft.prompt, reply) if reply else None
        if example is None or len(example.tokens) > MAX_EXAMPLE_TOKENS:
            origins["dropped"] += 1
            continue
        origins["feedback" if draft.feedback else "distilled"] += 1
        completed.append((draft.item, example))
    counts = Examples(
        given=len(drafts),
        feedback=origins["feedback"],
        distilled=origins["distilled"],
        dropped=origins["dropped"],
        train=0,
        heldout=0,
    )
    return completed, counts


def split_examples(
    completed: Sequence[tuple[str, Example]], counts: Examples, *, heldout_share: float, seed: int
) -> ExampleSet:
    """Holds out a share of the items, at least one; all examples of an item are on one side.

    The choice depends on each item alone, not on the other items: most items that measure a student's next version were
    also held out from the version before.

    Raises:
        NoTrainableExamples: There are fewer than two different items, as when replies could not be distilled.
    """
    items = sorted({item for item, _ in completed}, key=lambda item: sha256(f"{seed} {item}".encode()).digest())
    if len(items) < MIN_QUESTIONS:
        raise NoTrainableExamples(responses=counts.given, usable=len(items))
    heldout_items = set(items[: min(max(1, round(heldout_share * len(items))), len(items) - 1)])
    train = tuple(example for item, example in completed if item not in heldout_items)
    heldout = tuple(example for item, example in completed if item in heldout_items)
    return ExampleSet(train=train, heldout=heldout, counts=replace(counts, train=len(train), heldout=len(heldout)))


def _verdicts_of(responses: Iterable[BaselineResponse], *, best_score: float) -> list[_JudgedResponse]:
    return [(response, verdict_of(response, best_score=best_score)) for response in responses]


def _draft(
    profile: StudentProfile, response: BaselineResponse, *, verdict: ResponseVerdict, band: Band, is_guided: bool
) -> Draft:
    reference = response.reference_answer.strip()
    is_private = not reference and verdict is ResponseVerdict.CORRECT
    brief = ReplyBrief(
        profile=_profile_of(profile, response),
        question=response.question.strip(),
        # Without a reference, the student's right answer serves as one.
        reference=response.student_answer.strip() if is_private else reference,
        skill=response.skill,
        verdict=verdict,
        band=band,
        is_guided=is_guided,
        is_private=is_private,
    )
    return Draft(
        item=response.item,
        prompt=prompt_of(profile, response),
        feedback=response.teacher_feedback.strip(),
        brief=brief,
    )


def _profile_of(profile: StudentProfile, response: BaselineResponse) -> StudentProfile:
    return replace(profile, subject=response.subject or profile.subject)


def _skill_of(response: BaselineResponse) -> tuple[str, str]:
    return response.subject, response.skill


def _is_guided(responses: Iterable[_JudgedResponse]) -> bool:
    verdicts = Counter(verdict for _, verdict in responses)
    return verdicts[ResponseVerdict.CORRECT] < verdicts[ResponseVerdict.INCORRECT]


def _bands_of(responses: Iterable[_JudgedResponse]) -> dict[tuple[str, str], Band]:
    """The band of each skill; responses without a skill get the middle one."""
    records: dict[tuple[str, str], Counter[ResponseVerdict]] = {}
    for response, verdict in responses:
        records.setdefault(_skill_of(response), Counter())[verdict] += 1
    return {
        skill: band_of(
            correct=record[ResponseVerdict.CORRECT],
            judged=record[ResponseVerdict.CORRECT] + record[ResponseVerdict.INCORRECT],
        )
        if skill[1]
        else Band.DEVELOPING
        for skill, record in records.items()
    }
