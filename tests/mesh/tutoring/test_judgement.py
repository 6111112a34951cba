"""What a reply says of an answer, read from its words.

The sentences here are written for these tests; the lessons are checked by `tests/curriculum/test_lessons.py`.
"""

import pytest

from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.judgement import Judgement, contains_answer, contradicts, judgement_in, judges

STATED = {
    Judgement.RIGHT: (
        "Yes, one half is right. You cut the cake in two equal parts.",
        "Your answer is right. Many people make the mistake of adding first.",
        "Well done, 42 is right. You did not mix up the rows.",
        "Great job! 6 x 7 is 42.",
        "You got it! 42 is the product.",
        "Exactly. The Moon reflects light.",
        "Correct! Not every bird can fly.",
        "That's right: the second part of the sentence is the clause.",
        "Your calculation is correct. The first half is 10.",
        "Seven is the right number. You counted with care.",
        "That works! Your sentence has a subject and a verb.",
        "Good: the noun is dog.",
        "Your reason holds: metal conducts heat.",
        "The two halves of your sentence balance perfectly.",
    ),
    Judgement.WRONG: (
        "That is not right. The first part again, please.",
        "45 is too big. Count the rows.",
        "Not quite. Let's look at the right side of the equation.",
        "Your answer is not right yet. The right answer is 42.",
        "Good try! The correct answer is 42.",
        "Well done, but your answer is not correct.",
        "Incorrect. 6 x 7 = 42.",
        "Great effort! However, the answer is wrong.",
        "Hmm, that doesn\u2019t match. Try to count it again.",
        "This does not answer the question. A bird has wings, that is true.",
        "45 is not the total of six sevens. Build the rows again.",
        "That is the perimeter, and it is not the area. Count the squares inside.",
        "Good thinking, but the moon does not make light.",
        "No, ice is lighter than water. Look at a cup with ice.",
        "Let's check it: six sevens do not make 45.",
        "The root is not right, because it is not the whole plant.",
        "Melting is a different process, since it needs heat.",
    ),
    Judgement.PARTLY_RIGHT: (
        "You are on the right track. The word for it is missing.",
        "Your answer is partially correct. You also need the units.",
        "Good start! You named evaporation.",
        "That is almost right. Say why.",
        "You have one part of the answer. What is the other part?",
        "You found the first part. Add the reason.",
        "The first step is right; the second needs another look.",
        "One of your two reasons fits. The other one is about weather.",
        "True so far. What happens next in the cycle?",
        "Your fact is correct, and it answers only half of the question.",
        "A circle is correct, so half of your drawing is right.",
        "You named two of the causes. Which one comes first?",
        "That is not the whole story. Who else was there?",
    ),
    Judgement.NONE: (
        "",
        "The correct answer is 42.",
        "The answer to whether it floats is yes.",
        "Let's find the right order. Which comes first?",
        "A right angle has 90 degrees.",
        "Turn to the right side now. Then stop.",
        "Plants need light to grow. What else do they need?",
        "It is okay. Let's take one small step.",
    ),
}
JUDGING = (
    "Well done, your answer is right. 1. The light from the sun is absorbed by the air.",
    "Well done, your picture is clear. 1. Can you draw a small part?",
    "The sky is blue. Your answer is not right, so try again.",
    "That is correct. Air is a gas.",
    "You're absolutely right! Volcanoes erupt.",
    "Great job! Now let us look at the sky.",
    "Correct! The sky scatters light.",
    "Your answer is partly right.",
    "I think your answer is great, because it is short.",
    "Seven does not match the story.",
    "Yes, 42 is right.",
    "Not quite. Count the rows.",
)
SILENT = (
    "Yes, zero is an even number.",
    "No, a whale is a mammal.",
    "Check whether your answer is right.",
    "If your answer is correct, the scale balances.",
    "Use the test to see which one is correct.",
    "Venus is bright, and it is right next to the Moon tonight.",
    "If you are right-handed, hold it on the left.",
    "Well done for asking. The sky is blue because air scatters light.",
    "How do you know that your answer is right?",
    "A right triangle has one right angle.",
    "Galileo said that this is wrong.",
    "Both ways to write it are correct.",
    "Write the sum, so that your answer is in meters.",
    "You are right to ask about that.",
)


@pytest.mark.parametrize(("judgement", "reply"), [(kind, reply) for kind, group in STATED.items() for reply in group])
def test_the_verdict_of_a_reply_is_read_from_its_first_sentences(judgement: Judgement, reply: str) -> None:
    assert judgement_in(reply) == judgement


@pytest.mark.parametrize("reply", JUDGING)
def test_a_reply_that_judges_is_noticed(reply: str) -> None:
    assert judges(reply)


@pytest.mark.parametrize("reply", SILENT)
def test_a_reply_that_explains_asks_or_supposes_does_not_judge(reply: str) -> None:
    assert not judges(reply)


def test_an_answer_is_found_whatever_its_case_and_marks_and_not_inside_a_longer_number() -> None:
    assert contains_answer("So the Sun, not the Moon, shines.", "the sun")
    assert contains_answer("It is 7/8.", "7/8")
    assert not contains_answer("It is 17.", "7")
    assert not contains_answer("Anything at all.", " ")


@pytest.mark.parametrize("verdict", AnswerVerdict)
def test_only_the_opposite_contradicts_a_verdict(verdict: AnswerVerdict) -> None:
    contradictions = {
        judgement
        for judgement, replies in {**STATED, Judgement.NONE: ("Plants use light.",)}.items()
        if contradicts(replies[0], verdict)
    }
    opposite = {AnswerVerdict.CORRECT: {Judgement.WRONG}, AnswerVerdict.PARTIALLY_CORRECT: set()}
    assert contradictions == opposite.get(verdict, {Judgement.RIGHT})
