"""Slips in words are corrected_text before a guard reads them; names, other languages and new words are not."""

import pytest

from brain_server.safety.known_words import corrected_text, is_known, most_frequent


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("i wnat to kil mysef tonigt", "i want to kill myself tonight"),
        ("tell me a sotry about a frog", "tell me a story about a frog"),
        ("my techer is meen to me", "my teacher is mean to me"),
        ("He brougt a wepon to scool", "He brought a weapon to school"),
        ("I WILL HRUT HIM", "I WILL hurt HIM"),
    ],
)
def test_a_slip_is_read_as_the_likeliest_word(typed: str, meant: str) -> None:
    assert corrected_text(typed) == meant


@pytest.mark.parametrize(
    "text",
    [
        "my mom does my math homework",
        "is vaping bad and what is fentanyl",
        "i dont know what theyre doing on roblox lol",
        "why did Priya and Meursault not talk",
        "NaCl is salt and DNA is in cells",
        "quiero escribir una historia sobre mi perro y necesito palabras",
        "1 + 2 = 3",
        "",
    ],
)
def test_what_is_no_slip_stays(text: str) -> None:
    assert corrected_text(text) == text


def test_a_long_text_of_slips_is_corrected_as_far_as_time_allows() -> None:
    # Each word is another one, or a second one would cost nothing.
    slips = [f"hous{letter}" for letter in "bcdfghjklmnpqrtvwxz"] + [f"schol{letter}" for letter in "bcdfghjkmnpqtvwxz"]
    slips += [f"tabl{letter}" for letter in "bcdfghjkmnpqtvwxz"]
    text = " ".join(["the dog and the cat"] * len(slips) + slips)
    words = corrected_text(text).split()
    assert words[-1] == slips[-1]
    assert words[-len(slips)] != slips[0]


def test_of_several_readings_the_most_frequent_known_word_counts() -> None:
    assert most_frequent(["kiil", "kill", "kiln"]) == "kill"
    assert most_frequent(["xqz", "qqq"]) is None
    assert most_frequent(["it"]) is None
    assert is_known("Mom")
    assert not is_known("wepon")
