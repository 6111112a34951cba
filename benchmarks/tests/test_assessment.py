"""The figures of the assessment benchmark, with a scripted engine in place of a model."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.assessment import agreement_of, file_figures, product_figures
from benchmarks.assessment_items import EVERYDAY_ITEMS, new_products
from benchmarks.figures import Figure
from benchmarks.lexical_grader import LexicalGrader
from benchmarks.main_brain import conditions_of
from brain_server.assess.assessor import Assessor
from curriculum.answers import GradedAnswer
from mesh.lm.feedback import Feedback
from mesh.lm.grading import CORRECT, INCORRECT
from testing.scripted.engine import FACTS, MAIN_BRAIN, ScriptedEngine

REFERENCE = "The sun heats the water and it evaporates."
FEEDBACK = Feedback(
    feedback="Your answer is right.", strengths=("You name heat.",), areas_for_improvement=(), next_steps="Try it."
)


def graded(text: str, label: str, *, references: Sequence[str] = ("It is cold.", REFERENCE)) -> GradedAnswer:
    return GradedAnswer(
        source="set",
        module="water",
        question="Where did it go?",
        references=tuple(references),
        answer=text,
        label=label,
    )


ANSWERS = (
    graded("the sun heated the water so it evaporated", CORRECT),
    graded("water evaporates because the sun heats it", CORRECT),
    graded("a dog drank from the bowl", INCORRECT),
    graded("somebody took it home", INCORRECT),
    graded("12", CORRECT, references=("12",)),
    graded("13", INCORRECT, references=("12",)),
)


def by_name(figures: Sequence[Figure]) -> dict[str, Figure]:
    return {figure.figure.removeprefix("set_"): figure for figure in figures}


async def test_a_file_is_graded_with_the_closest_reference_and_compared_with_baselines() -> None:
    engine = ScriptedEngine()
    # Both wrong answers and one of the right ones are taken for wrong.
    engine.weights = {answer.answer: (0.1, 0.1, 0.8) for answer in ANSWERS[1:4]}
    engine.weights[ANSWERS[0].answer] = (0.9, 0.1, 0.0)
    figures = by_name(await file_figures("set", ANSWERS, Assessor(engine), LexicalGrader(ANSWERS)))
    f1 = figures["macro_f1_two_way"]
    assert f1.value == pytest.approx((2 / 3 + 0.8) / 2)
    assert f1.baseline == 1.0
    assert f1.facts["majority"] == pytest.approx(1 / 3)
    assert f1.facts["graders"] == {"zero-shot": 4}
    assert figures["auc"].value == pytest.approx(0.75)
    labels = figures["macro_f1_labels"].facts["labels"]
    assert isinstance(labels, dict)
    assert labels[CORRECT] == {"precision": 1.0, "recall": 0.5, "f1": 0.6667, "answers": 2}
    grader_texts = [
        prompt.turns[-1].text for prompt in engine.weighed if prompt.turns[-1].text.endswith(ANSWERS[0].answer)
    ]
    assert grader_texts == [
        f"Question: Where did it go?\nReference answer: {REFERENCE}\nStudent's answer: {ANSWERS[0].answer}"
    ]


async def test_answers_that_code_decided_as_numbers_are_reported_apart() -> None:
    figures = by_name(await file_figures("set", ANSWERS, Assessor(ScriptedEngine()), None))
    assert figures["agreement_of_code"].value == 1.0
    assert figures["agreement_of_code"].facts == {"answers": 2, "decided": "arithmetic"}
    assert figures["macro_f1_two_way"].facts["answers"] == 4
    assert figures["macro_f1_two_way"].baseline is None
    only_numbers = by_name(await file_figures("set", ANSWERS[4:], Assessor(ScriptedEngine()), None))
    assert set(only_numbers) == {"agreement_of_code", "seconds_per_answer"}


async def test_products_are_judged_and_a_whole_assess_is_timed() -> None:
    engine = ScriptedEngine()
    engine.text = FEEDBACK.to_json()
    products, assess = [figure async for figure in product_figures(Assessor(engine))]
    assert (products.value, products.met) == (24, True)
    assert products.facts["decided"] == {"arithmetic": 24}
    assert assess.facts["assessments"] == len(EVERYDAY_ITEMS)
    assert json.loads(engine.text)["feedback"]


def test_half_of_the_products_are_right_and_all_answers_to_time_have_twelve_words() -> None:
    products = new_products()
    assert len({product.criteria.question for product in products}) == 24
    assert sum(product.is_right for product in products) == 12
    assert all((product.criteria.reference_answer in product.answer) is product.is_right for product in products)
    assert {len(answer.split()) for _, _, answer in EVERYDAY_ITEMS} == {12}


def test_agreement_of_sure_and_right_probabilities_is_perfect() -> None:
    rows = [(1.0, 0.0, 0.0) if answer.label == CORRECT else (0.0, 0.0, 1.0) for answer in ANSWERS]
    perfect = {"macro_f1_two_way": 1.0, "macro_f1_labels": 1.0, "auc": 1.0, "calibration_error": 0.0}
    assert agreement_of(rows, ANSWERS).figures == perfect


def test_the_first_line_names_the_main_brain_with_its_grader_and_guard() -> None:
    conditions = conditions_of(FACTS)
    assert (conditions["main_brain"], conditions["grader"], conditions["guard"]) == (MAIN_BRAIN, "zero-shot", "rules")
    assert conditions_of(replace(FACTS, main_brain=None))["grader"] == "zero-shot"
