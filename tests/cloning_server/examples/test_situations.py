"""Situations: what a clone learns from one response, by what is known of its answer."""

from dataclasses import replace

import pytest

from cloning_server.clone import BaselineResponse
from cloning_server.examples.situations import Situation, draw_of, situations_of, text_of
from cloning_server.examples.verdicts import answer_verdict_of
from mesh.tutoring.assessment import AnswerVerdict
from testing.lessons import ITEMS, graded

# The draw of a question decides whether it also gives a hint: one of four does.
QUESTIONS = [f"What is part {number}?" for number in range(300)]
PLAIN = next(question for question in QUESTIONS if draw_of(question.casefold()) % 4 == 3)
HINTED = next(question for question in QUESTIONS if draw_of(question.casefold()) % 4 == 1)


def response_to(question: str, answer: str = "It beats.") -> BaselineResponse:
    return BaselineResponse(question=question, student_answer=answer)


@pytest.mark.parametrize(
    ("question", "answer", "verdict", "reference", "situations"),
    [
        (
            PLAIN,
            "It beats.",
            AnswerVerdict.INCORRECT,
            "It pumps blood.",
            (Situation.EXPLAIN, Situation.FEEDBACK, Situation.CHECK),
        ),
        (PLAIN, "It beats.", AnswerVerdict.INCORRECT, "", (Situation.FEEDBACK, Situation.CHECK)),
        (PLAIN, " ", AnswerVerdict.BLANK, "It pumps blood.", (Situation.EXPLAIN, Situation.FEEDBACK)),
        (PLAIN, "It beats.", None, "It pumps blood.", (Situation.EXPLAIN, Situation.CHECK)),
        (PLAIN, "It beats.", None, "", (Situation.CHECK,)),
        (PLAIN, " ", None, "It pumps blood.", (Situation.EXPLAIN,)),
        (PLAIN, " ", None, "", (Situation.HINT,)),
        (PLAIN, "-", AnswerVerdict.BLANK, "It pumps blood.", (Situation.EXPLAIN, Situation.FEEDBACK)),
        (PLAIN, "I don't know", None, "", (Situation.HINT,)),
        (
            HINTED,
            "It beats.",
            AnswerVerdict.CORRECT,
            "It pumps blood.",
            (Situation.EXPLAIN, Situation.FEEDBACK, Situation.CHECK, Situation.HINT),
        ),
        (HINTED, " ", None, "", (Situation.HINT,)),
        (HINTED, " ", AnswerVerdict.BLANK, "It pumps blood.", (Situation.EXPLAIN, Situation.FEEDBACK, Situation.HINT)),
    ],
)
def test_a_response_gives_the_situations_that_what_is_known_of_it_allows(
    question: str, answer: str, verdict: AnswerVerdict | None, reference: str, situations: tuple[Situation, ...]
) -> None:
    response = response_to(question, answer)
    assert situations_of(response, verdict=verdict, has_reference=bool(reference)) == situations


def test_a_quarter_of_the_items_gives_a_hint() -> None:
    given = [
        situations_of(response_to(question), verdict=AnswerVerdict.INCORRECT, has_reference=True)
        for question in QUESTIONS
    ]
    assert 50 <= sum(Situation.HINT in situations for situations in given) <= 100


def test_a_question_that_is_spelled_in_another_case_gives_the_same_situations() -> None:
    for question in QUESTIONS[:20]:
        lower, upper = response_to(question), response_to(f"  {question.upper()} ")
        assert situations_of(lower, verdict=None, has_reference=True) == situations_of(
            upper, verdict=None, has_reference=True
        )


def test_a_student_writes_a_question_alone_an_answer_behind_it_or_that_they_are_stuck() -> None:
    response = graded(0)
    question, _, answer = ITEMS[0]
    assert text_of(response, Situation.EXPLAIN) == question
    assert text_of(response, Situation.FEEDBACK) == f"{question}\n\nMy answer: {answer}"
    assert text_of(response, Situation.CHECK) == f"{question}\n\nMy answer: {answer}"
    stuck = text_of(response, Situation.HINT)
    assert stuck.startswith(f"{question}\n\n")
    assert "My answer" not in stuck
    assert answer not in stuck


def test_a_blank_answer_is_the_question_alone() -> None:
    assert text_of(replace(graded(0), student_answer="  "), Situation.FEEDBACK) == ITEMS[0][0]


@pytest.mark.parametrize(
    ("facts", "answer", "verdict"),
    [
        ({"is_correct": True}, "It beats.", AnswerVerdict.CORRECT),
        ({"is_correct": False}, "It beats.", AnswerVerdict.INCORRECT),
        ({"is_correct": False, "score": 20.0}, "It beats.", AnswerVerdict.PARTIALLY_CORRECT),
        ({"score": 20.0}, "It beats.", AnswerVerdict.PARTIALLY_CORRECT),
        ({"score": 0.0}, "It beats.", AnswerVerdict.INCORRECT),
        ({"is_correct": False}, " ", AnswerVerdict.BLANK),
        ({"score": 0.0}, "", AnswerVerdict.BLANK),
        # As StartClone wants an answer that was left out.
        ({"is_correct": False}, "-", AnswerVerdict.BLANK),
        ({"is_correct": False, "score": 5.0}, "I don\u2019t know.", AnswerVerdict.BLANK),
        ({"is_correct": False}, "I don't know, it beats.", AnswerVerdict.INCORRECT),
        # The question mark may be the answer.
        ({"is_correct": True}, "?", AnswerVerdict.CORRECT),
        ({}, "It beats.", None),
        ({}, "", None),
    ],
)
def test_a_prompt_may_tell_what_the_response_says_of_its_answer(
    facts: dict[str, object], answer: str, verdict: AnswerVerdict | None
) -> None:
    response = BaselineResponse(question="q", student_answer=answer, **facts)  # type: ignore[arg-type] # any field
    assert answer_verdict_of(response) is verdict
