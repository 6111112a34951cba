"""Which sentences of the Main Brain's replies a clone learns."""

from dataclasses import replace

import pytest

from cloning_server.compute.batch_decoding import Continuation
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.examples import draft_examples
from cloning_server.examples.manner import Manner
from cloning_server.examples.situations import Situation
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.examples.tutor import tutor_batches, tutor_sentences
from mesh.lm.chat import encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.policy import WritingLevel
from testing.lessons import ITEMS, baseline_of, graded

BASELINE = baseline_of([graded(index) for index in range(4)])
BRIEFS = [draft.brief for draft in draft_examples(BASELINE, compute_policy(BASELINE))]
TOLD_WRONG = next(brief for brief in BRIEFS if brief.verdict is AnswerVerdict.INCORRECT)
STUCK = next(brief for brief in BRIEFS if brief.situation is Situation.HINT)


def sentences(brief: ReplyBrief, reply: str, base: BaseModel) -> list[str]:
    tokens = base.tokenizer(reply, add_special_tokens=False)["input_ids"]
    return tutor_sentences(brief, Continuation(tokens=tuple(tokens), is_complete=True), base)


@pytest.mark.parametrize(
    ("reply", "used"),
    [
        (
            "Look at the leaf.\n1. Find its veins.\n2. Count them.\nWhat do you see?",
            ["Look at the leaf.", "Find its veins."],
        ),
        ("Look at the leaf. What do you see?", ["Look at the leaf."]),
        ("Look at the leaf. Look at the leaf. Find its", ["Look at the leaf."]),
        ("Look at the leaf. Then you are done.", ["Look at the leaf."]),
        ("What do you see?", []),
        ("", []),
        ("Well done, your answer is right.", []),
    ],
)
def test_what_is_taught_is_used_and_not_its_questions_and_ends(reply: str, used: list[str], base: BaseModel) -> None:
    assert sentences(STUCK, reply, base) == used


def test_a_reply_to_a_wrong_answer_is_used_if_it_says_so_and_does_not_say_the_right_one(base: BaseModel) -> None:
    reference = ITEMS[0][1]
    assert TOLD_WRONG.prompt.assessment is not None
    assert TOLD_WRONG.prompt.assessment.reference_answer == reference
    assert sentences(TOLD_WRONG, "That is not right yet. Look at it again.", base)
    assert sentences(TOLD_WRONG, "That is right. Look at it again.", base) == []
    assert sentences(TOLD_WRONG, f"That is not right yet. {reference}", base) == []


def test_a_sentence_with_a_number_that_nobody_gave_teaches_nothing(base: BaseModel) -> None:
    counted = replace(STUCK, prompt=replace(STUCK.prompt, facts=("6 x 7 = 42",)))
    assert sentences(counted, "Look at 42. Take 6 away.", base) == ["Look at 42.", "Take 6 away."]
    assert sentences(counted, "Look at 42. Take 5 away.", base) == ["Look at 42."]
    # The first sentence is the one that the others go on from.
    assert sentences(counted, "Look at 41. Take 6 away.", base) == []


def test_a_student_who_writes_short_sentences_gets_no_long_one_but_for_the_first(base: BaseModel) -> None:
    short = replace(STUCK, manner=Manner(writing=WritingLevel.BELOW))
    long = "Find the veins and the stem and the tip and the base of it."
    assert sentences(STUCK, f"Look at the leaf. {long}", base) == ["Look at the leaf.", long]
    assert sentences(short, f"Look at the leaf. {long}", base) == ["Look at the leaf."]


def test_the_main_brain_gets_the_students_own_prompts(base: BaseModel) -> None:
    (batch,) = tutor_batches([STUCK, TOLD_WRONG], base)
    assert {opening.tokens for _, opening in batch} == {
        tuple(encode_prompt(base.tokenizer, brief.prompt)) for brief in (STUCK, TOLD_WRONG)
    }
