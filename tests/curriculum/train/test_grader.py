"""What a grader learns beside pupils' answers, and how its probabilities are calibrated."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from curriculum.train.grader import JudgedAnswer, calibrate
from curriculum.train.grading_sets import GradedAnswer, made_answers
from mesh.lm.grading import CORRECT, INCORRECT, LABELS
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.overlap import overlap_of


def graded(question: str, reference: str, answer: str, label: str) -> GradedAnswer:
    return GradedAnswer(
        source="lessons", module="science", question=question, references=(reference,), answer=answer, label=label,
        subject="Science",
    )  # fmt: skip


def judged(label: str, count: int) -> list[JudgedAnswer]:
    criteria = Criteria(question="Why?", reference_answer="Because of gravity.")
    return [JudgedAnswer(answer="It falls.", criteria=criteria, label=label)] * count


@pytest.mark.parametrize("rights", [10, 50, 90])
def test_a_grader_that_knows_nothing_calls_nothing_likelier_whatever_the_share_of_right_answers(rights: int) -> None:
    answers = [*judged(CORRECT, rights), *judged(INCORRECT, 100 - rights)]
    weights: Sequence[Sequence[float]] = [[1 / len(LABELS)] * len(LABELS)] * 100
    correct, *_ = calibrate(answers, weights).apply(weights[0], overlap_of(answers[0].answer, answers[0].criteria))
    assert correct == pytest.approx(0.5, abs=0.05)


def test_answers_of_one_kind_alone_can_be_calibrated_with() -> None:
    answers = judged(CORRECT, 5)
    correct, *others = calibrate(answers, [[0.4, 0.3, 0.3]] * 5).apply([0.4, 0.3, 0.3], (0.0,) * 6)
    assert correct > max(others)


def test_a_lesson_gives_one_certain_answer_and_a_question_of_many_pupils_all_kinds() -> None:
    lessons = [graded(f"Question {number}?", f"Reference {number}.", "x", CORRECT) for number in range(20)]
    pupils = [graded("Asked of many?", "All of it.", f"answer {number}", INCORRECT) for number in range(6)]
    made = made_answers([*lessons, *pupils], draws=random.Random(0))
    counts = Counter(answer.question for answer in made)
    assert {counts[lesson.question] for lesson in lessons} == {1}
    assert counts["Asked of many?"] == 4
    assert Counter(answer.label for answer in made if answer.question == "Asked of many?") == {CORRECT: 1, INCORRECT: 3}


def test_yes_is_never_made_wrong_where_it_is_right() -> None:
    answers = [graded("Is ice water?", "Yes, it is.", f"answer {number}", CORRECT) for number in range(6)]
    made = [answer for seed in range(200) for answer in made_answers(answers, draws=random.Random(seed))]
    wrong_texts = {answer.answer for answer in made if answer.label == INCORRECT}
    assert "yes" not in wrong_texts
    assert "no" in wrong_texts
