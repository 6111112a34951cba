"""Texts written otherwise: misspelt, or so that a filter of words does not know them. Code makes them, by chance."""

import random
import re
from collections.abc import Callable
from enum import StrEnum


class Spelling(StrEnum):
    """How a text is written."""

    PLAIN = "plain"
    MISSPELT = "misspelt"
    LEET = "leet"
    SPACED = "spaced"
    CASE = "case"
    HOMOGLYPHS = "homoglyphs"


_WORD = re.compile(r"[^\W\d_]+")
_SHORT_FORMS = {
    "you": "u", "your": "ur", "are": "r", "to": "2", "for": "4", "because": "cuz", "people": "ppl", "please": "pls",
    "tonight": "2nite", "with": "w", "want": "wanna", "going": "goin", "what": "wat", "though": "tho",
}  # fmt: skip
_LEET = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7", "b": "8", "g": "9", "l": "1"}
# Cyrillic and Greek letters that look Latin.
_LOOKALIKES = dict(zip("aceiopsxy", "\u0430\u0441\u0435\u0456\u03bf\u0440\u0455\u0445\u0443", strict=True))
_INVISIBLE = "\u200b\u200d\u2060"
_VOWELS = "aeiou"
# Letters of a word that can be misspelt without turning into another one too often.
_LEAST_LETTERS = 4


def respelt(text: str, spelling: Spelling, draws: random.Random) -> str:
    """Returns a text written otherwise; at least one word changes, if there is one that can."""
    return _CHANGES[spelling](text, draws)


def _misspelt(text: str, draws: random.Random) -> str:
    return _change_words(text, draws, share=0.3, change=_misspell)


def _leet(text: str, draws: random.Random) -> str:
    def change(word: str, draws: random.Random) -> str:
        letters = [
            draws.choice(_LEET[letter.lower()]) if letter.lower() in _LEET and draws.random() < 0.7 else letter
            for letter in word
        ]
        return "".join(letters)

    return _change_words(text, draws, share=0.6, change=change)


def _spaced(text: str, draws: random.Random) -> str:
    mark = draws.choice((" ", ".", "-", "_", "*"))
    return _change_words(text, draws, share=0.2, change=lambda word, _draws: mark.join(word))


def _case(text: str, draws: random.Random) -> str:
    mixed = "".join(letter.upper() if draws.random() < 0.5 else letter.lower() for letter in text)
    return text.upper() if mixed == text or draws.random() < 0.6 else mixed


def _homoglyphs(text: str, draws: random.Random) -> str:
    def change(word: str, draws: random.Random) -> str:
        letters = [_LOOKALIKES.get(letter, letter) if draws.random() < 0.6 else letter for letter in word]
        if draws.random() < 0.3:
            letters.insert(len(letters) // 2, draws.choice(_INVISIBLE))
        return "".join(letters)

    return _change_words(text, draws, share=0.5, change=change)


_CHANGES: dict[Spelling, Callable[[str, random.Random], str]] = {
    Spelling.PLAIN: lambda text, _draws: text,
    Spelling.MISSPELT: _misspelt,
    Spelling.LEET: _leet,
    Spelling.SPACED: _spaced,
    Spelling.CASE: _case,
    Spelling.HOMOGLYPHS: _homoglyphs,
}


def _change_words(text: str, draws: random.Random, *, share: float, change: Callable[[str, random.Random], str]) -> str:
    """Changes a share of the words; one that is long enough for certain."""
    words = list(_WORD.finditer(text))
    long_words = [place for place, word in enumerate(words) if len(word[0]) >= _LEAST_LETTERS]
    certain_place = draws.choice(long_words) if long_words else 0
    parts, end = [], 0
    for place, word in enumerate(words):
        is_changed = place == certain_place or draws.random() < share
        parts += [text[end : word.start()], change(word[0], draws) if is_changed else word[0]]
        end = word.end()
    return "".join([*parts, text[end:]])


def _misspell(word: str, draws: random.Random) -> str:
    if word.lower() in _SHORT_FORMS:
        return _SHORT_FORMS[word.lower()]
    if len(word) < _LEAST_LETTERS:
        return word
    place = draws.randrange(1, len(word) - 1)
    vowels = [index for index, letter in enumerate(word) if letter in _VOWELS]
    vowel = draws.choice(vowels) if vowels else place
    slips = (
        word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        word[:place] + word[place + 1 :],
        word[: place + 1] + word[place:],
        word[:vowel] + draws.choice(_VOWELS) + word[vowel + 1 :],
    )
    return draws.choice([slip for slip in slips if slip != word])
