"""Verdicts by code on numeric answers."""

import pytest

from brain_server.assess.arithmetic import decide_by_arithmetic
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.criteria import Criteria

PRODUCT = Criteria(question="What is 7 x 8?", reference_answer="56")
RIGHT, WRONG = AnswerVerdict.CORRECT, AnswerVerdict.INCORRECT


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("56", RIGHT), ("54", WRONG), ("fifty-six", RIGHT), ("fifty six", RIGHT), ("Fifty-four", WRONG),
        ("56.0", RIGHT),
        ("it is 56", RIGHT), ("it is 54", WRONG), ("56 apples", RIGHT), ("54 apples", WRONG),
        ("The answer is 56.", RIGHT),
        ("i think it's 56", RIGHT), ("I got 63", WRONG), ("56!", RIGHT), (" 56 ", RIGHT), ("7 x 8 = 56", RIGHT),
        ("7 x 8 = 54", WRONG), ("5,6", WRONG), ("-56", WRONG), ("560", WRONG), ("112/2", RIGHT), ("= 56", RIGHT),
        ("x = 56", RIGHT),
        ("0", WRONG),
    ],
)  # fmt: skip
@pytest.mark.parametrize("criteria", [PRODUCT, Criteria(question="What is 7 x 8?"), Criteria(reference_answer="56")])
def test_a_product_is_decided_right(answer: str, verdict: AnswerVerdict, criteria: Criteria) -> None:
    assert decide_by_arithmetic(answer, criteria) is verdict


@pytest.mark.parametrize(
    ("answer", "verdict"), [("3 r 2", RIGHT), ("3.4", RIGHT), ("3 remainder 1", WRONG), ("3", WRONG)]
)
def test_a_quotient_may_have_a_remainder(answer: str, verdict: AnswerVerdict) -> None:
    assert decide_by_arithmetic(answer, Criteria(question="What is 17 ÷ 5?")) is verdict


@pytest.mark.parametrize(
    ("answer", "criteria"),
    [
        ("", PRODUCT),
        ("I don't know", PRODUCT),
        ("56 or 54", PRODUCT),
        ("about 56", PRODUCT),
        ("8 x 7", PRODUCT),
        ("42", Criteria(question="What is 6 x 7? Explain.", reference_answer="It is 42, because 6 x 7 is 36 + 6.")),
        ("42", Criteria(question="What is 6 x 7? Explain how you know.")),
        ("42", Criteria(question="What is 6 x 7?", rubric="Two points for the strategy.")),
        ("42", Criteria(question="What are 6 x 7 and 6 x 8?")),
        ("0.33", Criteria(question="What is 1 ÷ 3?")),
        ("plants", Criteria(question="What makes its own food?", reference_answer="plants")),
        ("56", Criteria(learning_objective="Knows that 7 x 8 = 56")),
    ],
)
def test_what_numbers_do_not_decide_is_left_to_the_grader(answer: str, criteria: Criteria) -> None:
    assert decide_by_arithmetic(answer, criteria) is None
