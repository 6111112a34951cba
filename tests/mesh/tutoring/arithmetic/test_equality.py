"""Whether two answers are the same number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.tutoring.arithmetic import same_number


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1/2", "0.5"), ("50%", "0.5"), ("50%", "50"), ("3 1/2", "3.5"), ("5 km", "5000 m"), ("half", "1/2"),
        ("$7", "7 dollars"),
        ("$7", "700 cents"), ("1,200", "1200"), ("0,5", "1/2"), ("-5", "\u22125"), ("x = 5", "5"),
        ("2 million", "2,000,000"),
        ("3 remainder 2", "3 r 2"), ("2/4", "1/2"), ("twelve", "12"), ("3 apples", "3 apple"),
    ],
)  # fmt: skip
def test_one_number_in_two_notations_is_the_same(first: str, second: str) -> None:
    assert same_number(first, second) is True
    assert same_number(second, first) is True


@pytest.mark.parametrize(
    ("first", "second"),
    [("56", "54"), ("56", "-56"), ("1/2", "1/3"), ("5 km", "5 m"), ("3 r 2", "3 r 1"), ("0.5", "50"), ("7", "seventy")],
)
def test_another_number_is_not_the_same(first: str, second: str) -> None:
    assert same_number(first, second) is False


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("56", ""), ("56", "not 56"), ("56", "about 56"), ("56", "54 or 56"), ("56", "7 x 8"), ("36", "3 dozen"),
        ("50", "5 tens"),
        ("4 legs", "4 arms"), ("1776", "July 4, 1776"), ("1/3", "0.33"), ("a dog", "a dog"), ("5 km", "5 kg"),
        ("3", "2x + 3"),
        ("56", "the answer is more than 50"), ("5", "x + 5"), ("3:45", "3"),
        ("4", "they have 4 because the big plant grew in the sun for a long time and then it was watered"),
    ],
)  # fmt: skip
def test_what_is_not_one_number_is_left_to_others(first: str, second: str) -> None:
    assert same_number(first, second) is None


def test_an_answer_may_have_a_unit_that_the_reference_leaves_out_and_not_the_other_way_round() -> None:
    assert same_number("5", "5 km") is True
    assert same_number("5 km", "5") is None
    assert same_number("5 km", "6") is False
    assert same_number("15 square feet", "15") is None
    assert same_number("$7", "7") is True


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("3/1", "my favrite number is 3"),
        ("115 degrees", "triangles have 3 angles and some are right angles"),
        ("40 degrees, inscribed angle theorem", "40"),
        ("two small yellow", "yellow small two"),
        ("(Morrison 54)", "(Toni Morrison, Beloved, p. 54)"),
        ("The green one, because predators cannot see it", "the green one"),
        ("one watches for danger and they share pup care", "one watches for danger"),
    ],
)
def test_a_number_in_prose_is_not_compared(reference: str, answer: str) -> None:
    assert same_number(reference, answer) is None


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_raises(first: str, second: str) -> None:
    assert same_number(first, second) in {True, False, None}
