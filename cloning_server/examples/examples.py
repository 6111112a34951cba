"""Training examples: conversations made from the responses of a baseline.

An example is a prompt as this student's model will get it when it serves, and a tutor's reply. The reply is the
teacher's feedback if there is any; otherwise it is distilled from a `ReplyBrief`.

Knows nothing of how replies are distilled or how a model is trained.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase

from cloning_server.clone import MIN_QUESTIONS, Baseline, BaselineResponse
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.manner import manner_of, scaffold_of
from cloning_server.examples.situations import Situation, draw_of, situations_of, text_of
from cloning_server.examples.verdicts import answer_verdict_of
from mesh.adapters.manifest import Examples
from mesh.errors import NoTrainableExamples
from mesh.lm.chat import Example, Prompt, Role, Turn, encode_example
from mesh.tutoring.arithmetic import compute
from mesh.tutoring.assessment import AnswerAssessment, AnswerVerdict
from mesh.tutoring.form import count_words
from mesh.tutoring.judgement import Judgement, agrees, judgement_in
from mesh.tutoring.policy import TeachingPolicy
from mesh.tutoring.profile import StudentProfile

# Longer conversations are dropped: the longest one decides how much memory a batch needs.
MAX_EXAMPLE_TOKENS = 1024
# The verdicts that a teacher can state.
_STATED: Mapping[Judgement, AnswerVerdict] = MappingProxyType(
    {
        Judgement.RIGHT: AnswerVerdict.CORRECT,
        Judgement.PARTLY_RIGHT: AnswerVerdict.PARTIALLY_CORRECT,
        Judgement.WRONG: AnswerVerdict.INCORRECT,
    }
)
# Epochs after which all situations of an item have been shown.
_ROUNDS = 4
# So many held-out examples are all measured: each costs a clone as much time as a third of a step.
_FEW_TESTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A conversation that may lack its reply.

    Attributes:
        item: Key that the split keeps together: the question, without differences of case and spacing.
        response: Index of the response in the baseline.
        prompt: The prompt of the student's model.
        feedback: The teacher's own reply; empty if there is none.
        brief: The brief to distil a reply from if there is no feedback.
    """

    item: str
    response: int
    prompt: Prompt
    feedback: str
    brief: ReplyBrief


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedExample(Example):
    """An example, with what a gate must know to judge another reply to its prompt.

    Attributes:
        item: The item that it is about.
        situation: What the student needs.
        verdict: The verdict that is in the prompt; None if there is none.
    """

    item: str
    situation: Situation
    verdict: AnswerVerdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """The examples, split: no item is on both sides.

    Attributes:
        train: All examples to train on.
        rounds: What an epoch shows: the first of the first, and so on, then from the start again. Each tells an item in
            some of its situations, so that many situations take a clone no more time than one.
        retained: Replies to prompts that are no school work. Each epoch shows some of them, in turn. They are neither
            measured nor counted.
        common: Explanations of what any student asks; shown like the retained ones.
        heldout: The examples to measure with: replies to some of them are decoded.
        measured: Those whose loss is measured: all, or where there are many, each item in one situation.
        counts: How many there are.
    """

    train: tuple[Example, ...]
    rounds: tuple[tuple[Example, ...], ...]
    heldout: tuple[LearnedExample, ...]
    measured: tuple[Example, ...]
    retained: tuple[Example, ...] = ()
    common: tuple[Example, ...] = ()
    counts: Examples


def draft_examples(baseline: Baseline, policy: TeachingPolicy) -> tuple[Draft, ...]:
    """The drafts of all responses, in order: one per situation of a response, and one with a right answer.

    Args:
        baseline: The responses.
        policy: The student's teaching policy, which shapes the replies.
    """
    return tuple(
        draft
        for index, response in enumerate(baseline.responses)
        for draft in _drafts_of(response, policy, index=index, profile=baseline.profile, best_score=baseline.best_score)
    )


def complete_examples(
    drafts: Sequence[Draft], replies: Mapping[ReplyBrief, str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[str, LearnedExample]], Examples]:
    """Adds the replies to drafts; a teacher's feedback takes precedence over a distilled reply.

    A draft without a reply, or one that is too long, is dropped; a response all of whose drafts are dropped is counted.

    Returns:
        The examples with their items, and the counts; those of the split are 0.
    """
    completed: list[tuple[str, LearnedExample]] = []
    origins: Counter[str] = Counter()
    used: set[int] = set()
    for draft in drafts:
        reply = draft.feedback or replies.get(draft.brief, "")
        example = encode_example(tokenizer, draft.prompt, reply) if reply else None
        if example is None or len(example.tokens) > MAX_EXAMPLE_TOKENS:
            continue
        used.add(draft.response)
        origins["feedback" if draft.feedback else "distilled"] += 1
        learned = LearnedExample(
            tokens=example.tokens,
            reply_start=example.reply_start,
            body_start=example.body_start,
            item=draft.item,
            situation=draft.brief.situation,
            verdict=draft.brief.verdict,
        )
        completed.append((draft.item, learned))
    responses = {draft.response for draft in drafts}
    counts = Examples(
        given=len(responses),
        feedback=origins["feedback"],
        distilled=origins["distilled"],
        dropped=len(responses - used),
        train=0,
        heldout=0,
    )
    return completed, counts


def split_examples(
    completed: Sequence[tuple[str, LearnedExample]], counts: Examples, *, heldout_share: float, seed: int
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
    learned = [(item, example) for item, example in completed if item not in heldout_items]
    tests = [(item, example) for item, example in completed if item in heldout_items]
    heldout = tuple(example for _, example in tests)
    return ExampleSet(
        train=tuple(example for _, example in learned),
        rounds=_rounds_of(learned),
        heldout=heldout,
        measured=heldout if len(heldout) <= _FEW_TESTS else _rounds_of(tests)[0],
        counts=replace(counts, train=len(learned), heldout=len(heldout)),
    )


def _rounds_of(learned: Sequence[tuple[str, Example]]) -> tuple[tuple[Example, ...], ...]:
    by_item: dict[str, list[Example]] = {}
    for item, example in learned:
        by_item.setdefault(item, []).append(example)
    return tuple(
        tuple(
            example
            for item, examples in by_item.items()
            for place, example in enumerate(examples, start=draw_of(item))
            # An item with fewer situations than rounds is told in the same ones again.
            if place % min(len(examples), _ROUNDS) == turn % min(len(examples), _ROUNDS)
        )
        for turn in range(_ROUNDS)
    )


def _drafts_of(
    response: BaselineResponse, policy: TeachingPolicy, *, index: int, profile: StudentProfile, best_score: float
) -> Iterator[Draft]:
    own_profile = replace(profile, subject=response.subject or profile.subject)
    assessed = answer_verdict_of(response, best_score=best_score)
    feedback = response.teacher_feedback.strip()
    stated = _stated_verdict(feedback, assessed)
    is_open = bool(feedback) and stated is None
    reference = response.reference_answer.strip()
    # Without a reference, the student's right answer serves as one.
    is_private = not reference and assessed is AnswerVerdict.CORRECT
    right_answer = response.student_answer.strip() if is_private else reference
    draw = draw_of(response.item)
    situations = situations_of(response, verdict=stated or assessed, has_reference=bool(right_answer), is_open=is_open)

    def draft(
        situation: Situation,
        *,
        verdict: AnswerVerdict | None,
        text: str,
        says: str,
        feedback: str = "",
        is_private: bool = False,
    ) -> Draft:
        prompt = Prompt(
            profile=own_profile,
            turns=(Turn(role=Role.STUDENT, text=text),),
            assessment=AnswerAssessment(verdict=verdict, reference_answer=reference) if verdict else None,
            # As serving computes them.
            facts=compute(text).facts,
        )
        brief = ReplyBrief(
            profile=own_profile,
            situation=situation,
            question=response.question.strip(),
            reference=_in_a_sentence(says, question=response.question),
            verdict=verdict,
            scaffold=scaffold_of(policy, response),
            manner=manner_of(policy, draw=draw),
            is_private=is_private,
            # The situations of an item don't sound alike.
            draw=draw + len(situation.value),
            prompt=prompt,
        )
        return Draft(item=response.item, response=index, prompt=prompt, feedback=feedback, brief=brief)

    for situation in situations:
        if situation is Situation.CHECK and not feedback and compute(text_of(response, situation)).assessment:
            # Serving would judge this answer, as code can: nobody meets the prompt.
            continue
        verdict = (stated or assessed) if situation is Situation.FEEDBACK else None
        says_answer = situation is Situation.EXPLAIN or verdict is AnswerVerdict.CORRECT
        yield draft(
            situation,
            verdict=verdict,
            text=text_of(response, situation),
            says=right_answer if says_answer else "",
            feedback=feedback if situation is (Situation.CHECK if is_open else Situation.FEEDBACK) else "",
            is_private=is_private and says_answer,
        )
    if (stated or assessed) not in {None, AnswerVerdict.CORRECT} and reference:
        # The question with a right answer: a verdict is read from the prompt, and not remembered with the question.
        right = replace(response, student_answer=reference)
        verdict = AnswerVerdict.CORRECT
        yield draft(Situation.FEEDBACK, verdict=verdict, text=text_of(right, Situation.FEEDBACK), says=reference)


def _in_a_sentence(reference: str, *, question: str) -> str:
    """Returns a right answer as a tutor says it: a word or a number alone is no sentence."""
    answer = reference.rstrip(".")
    if not answer or count_words(answer) > (2 if answer[0].isdigit() else 1):
        return reference
    facts = compute(question).facts
    if len(facts) == 1 and facts[0].endswith(f" {answer}"):
        return f"{facts[0]}."
    return f"The answer is {answer}."


def _stated_verdict(feedback: str, assessed: AnswerVerdict | None) -> AnswerVerdict | None:
    """What a teacher's feedback says of the answer, so that its prompt tells the same; None if it says nothing."""
    if not feedback or (assessed is not None and agrees(feedback, assessed)):
        return assessed if feedback else None
    return _STATED.get(judgement_in(feedback))
