"""All faults of a request are told at once, in words that help and repeat nothing."""

import math
import re
from collections.abc import Callable

import pytest

from mesh.errors import InvalidField, Violation
from mesh.rpc.validation import Fields

SECRET = "my dog died on Tuesday"
STUDENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def faults_of(fields: Fields) -> tuple[Violation, ...]:
    with pytest.raises(InvalidField) as caught:
        fields.raise_if_any()
    return caught.value.violations


def test_nothing_is_raised_if_all_is_well() -> None:
    fields = Fields()
    fields.require_text("prompt", "why?", max_chars=4)
    fields.text("subject", "", max_chars=64)
    fields.one_of("grade", "K", ("K", "1"))
    fields.one_of("grade", "", ("K", "1"))
    fields.pattern("student_id", "student123", STUDENT_ID, meaning="letters and digits", required=True)
    fields.pattern("request_id", "", STUDENT_ID, meaning="letters and digits")
    fields.between("temperature", 0, low=0, high=2)
    fields.between("temperature", None, low=0, high=2)
    fields.count("history", 32, high=32)
    fields.raise_if_any()


@pytest.mark.parametrize(
    ("check", "description"),
    [
        (lambda f: f.require_text("x", " \n", max_chars=8000), "must not be empty"),
        (lambda f: f.require_text("x", "a" * 8001, max_chars=8000), "must be at most 8,000 characters"),
        (lambda f: f.text("x", "aaa", max_chars=2), "must be at most 2 characters"),
        (lambda f: f.one_of("x", SECRET, ("K", "1")), "must be one of K, 1, or empty"),
        (lambda f: f.one_of("x", "", ("K", "1"), required=True), "must be one of K, 1"),
        (lambda f: f.pattern("x", "../x", STUDENT_ID, meaning="letters, digits"), "must be letters, digits"),
        (lambda f: f.pattern("x", "a\n", STUDENT_ID, meaning="letters, digits"), "must be letters, digits"),
        (lambda f: f.pattern("x", "", STUDENT_ID, meaning="letters", required=True), "must not be empty"),
        (lambda f: f.between("x", math.nan, low=0, high=2), "must be from 0 to 2"),
        (lambda f: f.between("x", math.inf, low=0, high=2), "must be from 0 to 2"),
        (lambda f: f.between("x", -0.1, low=0, high=2), "must be from 0 to 2"),
        (lambda f: f.between("x", 0, low=0, high=1, above_low=True), "must be above 0 to 1"),
        (lambda f: f.between("x", 1025, low=1, high=1024), "must be from 1 to 1,024"),
        (lambda f: f.count("x", 33, high=32), "must have at most 32 elements"),
        (lambda f: f.count("x", 1, low=2, high=1000), "must have 2 to 1,000 elements"),
    ],
)
def test_a_fault_names_the_limit(check: Callable[[Fields], None], description: str) -> None:
    fields = Fields()
    check(fields)
    assert faults_of(fields) == (Violation("x", description),)


def test_all_faults_are_told_with_their_paths_in_order() -> None:
    fields = Fields()
    fields.require_text("student_id", "", max_chars=64)
    response = fields.within("baseline_data").within("responses[3]")
    response.require_text("question", "", max_chars=4000)
    response.between("score", math.nan, low=0, high=100)
    fields.include(InvalidField([Violation("student_profile.grade", "must be one of K, 1")]))
    assert [fault.field for fault in faults_of(fields)] == [
        "student_id",
        "baseline_data.responses[3].question",
        "baseline_data.responses[3].score",
        "student_profile.grade",
    ]
