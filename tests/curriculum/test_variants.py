"""Texts written otherwise."""

import random

import pytest

from curriculum.variants import Spelling, respelt

TEXT = "Why does the teacher always say that nobody can hide from arithmetic?"
OTHERS = [spelling for spelling in Spelling if spelling is not Spelling.PLAIN]


@pytest.mark.parametrize("spelling", OTHERS)
def test_every_spelling_changes_every_text_and_never_all_of_it(spelling: Spelling) -> None:
    for seed in range(50):
        changed = respelt(TEXT, spelling, random.Random(seed))
        assert changed != TEXT
        assert changed.endswith("?")
        assert len(changed) < 2 * len(TEXT)
        assert respelt(TEXT, spelling, random.Random(seed)) == changed


def test_a_plain_text_stays_as_it_is() -> None:
    assert respelt(TEXT, Spelling.PLAIN, random.Random(0)) == TEXT


@pytest.mark.parametrize("spelling", Spelling)
@pytest.mark.parametrize("text", ["", "?!", "7 x 8", "a b", "¿qué?"])
def test_texts_without_long_words_can_be_written_otherwise(text: str, spelling: Spelling) -> None:
    for seed in range(20):
        assert bool(respelt(text, spelling, random.Random(seed))) is bool(text)


def test_spellings_are_what_their_names_say() -> None:
    texts = {spelling: [respelt(TEXT, spelling, random.Random(seed)) for seed in range(30)] for spelling in Spelling}
    assert all(any(letter.isdigit() or letter in "@!$" for letter in text) for text in texts[Spelling.LEET])
    assert all(text.lower() == TEXT.lower() for text in texts[Spelling.CASE])
    assert not any(text.isascii() for text in texts[Spelling.HOMOGLYPHS])
    assert all(abs(len(text) - len(TEXT)) < 12 for text in texts[Spelling.MISSPELT])
    letters = TEXT.replace(" ", "")
    for text in texts[Spelling.SPACED]:
        assert "".join(letter for letter in text if letter not in " .-_*") == letters
