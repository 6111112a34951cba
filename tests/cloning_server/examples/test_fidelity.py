"""Fidelity: which replies say what a reference answer says, by the ways in which small models fail."""

import pytest

from cloning_server.examples.fidelity import content_faults

ICE = "Ice is less dense than water, so it floats."
SAND = "The salt is small enough to pass the filter, but the sand is too large."


@pytest.mark.parametrize(
    ("reference", "reply"),
    [
        (ICE, "Ice is less dense than water. So it floats."),
        ("The bulb will light.", "The bulb lights up."),
        ("As time increases, the rings increase.", "As time is increasing, the rings increase."),
        ("No. Only one circuit can be complete at a time.", "No, only one circuit can be completed at a time."),
        ("He ran 5 kilometers.", "He ran five kilometers."),
        ("x = -5, as 2 - 7 = -5.", "x = -5. 2 - 7 = -5."),
        ("Растения растут к свету.", "Растения растут к свету."),
        ("The motor stops. The motor stops at once.", "The motor stops. The motor stops at once."),
    ],
)
def test_a_restatement_has_no_faults(reference: str, reply: str) -> None:
    assert content_faults(reply, reference, question="") == []


@pytest.mark.parametrize(
    ("reference", "reply", "fault"),
    [
        (ICE, "", "is empty"),
        (ICE, "Ice floats.", "lacks content of the reference"),
        (ICE, "Ice is less dense than water, so it floats", "does not end with a whole sentence"),
        (ICE, "Ice is less dense than water, so it floats. Ice is less dense than water.", "repeats itself"),
        (ICE, f"{ICE} Snow and wood and oil and cork do as well, and boats too.", "is too long"),
        ("The circuit is parallel.", "The circuit is not parallel.", "denies"),
        ("The key does not stick.", "The key does stick.", "denies"),
        (SAND, "The sand is small enough to pass the filter, but the salt is too large.", "lacks content"),
        ("The pitch gets higher.", "The pitch gets lower.", "has numbers or opposites of its own"),
        ("He ran 5 kilometers.", "He ran 6 kilometers.", "has numbers"),
        ("He ran 5 kilometers.", "He ran 5 miles.", "lacks a unit"),
        ("x = -5.", "x = 5.", "has numbers"),
        ("2 + 3 = 5.", "2 - 3 = 5.", "has numbers"),
        ("Yes. It is parallel.", "No. It is parallel.", "contradicts"),
        ("The food has sugar.", "The food has sugar and yeast and salt.", "is about something else"),
    ],
)
def test_each_way_of_failing_is_reported(reference: str, reply: str, fault: str) -> None:
    assert any(message.startswith(fault) for message in content_faults(reply, reference, question=""))


def test_numbers_of_the_question_may_be_said() -> None:
    reply, reference = "28 degrees is warm in Celsius.", "Degrees of Celsius, as 28 is warm."
    assert "has numbers or opposites of its own" not in content_faults(reply, reference, question="Is it 28 degrees?")
