"""Undoes spelling tricks before a text is screened: invisible characters, lookalikes, leet, spaced letters.

What it returns is for screening alone; nobody is shown it. Formulas, units and ordinals stay as they are. Unicode
Technical Standard 39 ("Unicode Security Mechanisms") lists the lookalikes.
"""

import math
import re
import unicodedata
from itertools import product

from brain_server.safety.known_words import corrected_text, most_frequent

# Letters of other alphabets that look like Latin ones: from the Cyrillic, Greek and Armenian entries of UTS 39's
# `confusables.txt`, without those that only resemble a Latin letter from afar.
_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеіјорсухѕԁһӏкмтвгԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧαγικνορτυχօսհոıɑɡɩʟ",
    "ABESIJKMHOPCTYXaeijopcyxsdhlkmtbrqwABEZHIKMNOPTYXayiknoptuxouhniagil",
)
# Control and format characters, and marks that lie over other characters.
_INVISIBLE = frozenset({"Cc", "Cf", "Me", "Mn"})
_LEET = str.maketrans("013457@$!|€", "oieastasiie")
# What else a mark may stand for, if that makes a known word.
_LEET_LETTERS = {
    "0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s",
    "!": "il", "|": "il", "€": "e",
}  # fmt: skip
_MOST_READINGS = 64
_LEET_WORD = re.compile(r"(?<![\w@$!|€])[A-Za-z@$!|€0-9]*[A-Za-z][A-Za-z@$!|€0-9]*")
_LEET_MARK = re.compile(r"[013-9@$|€]|!(?=[A-Za-z@$|0-9])")
# 30cm, 2nd, 10am, 1990s, and what has a sign at its end, such as "Help!".
_MEASURE = re.compile(
    r"\d+(?:st|nd|rd|th|s|am|pm|[kcm]?m|k?g|mg|in|ft|yd|mi|lbs?|oz|m?l|hr?s?|min|sec|mph|[km]?hz|[kmgt]b|[kdx])"
    r"|[A-Za-z]+!+",
    re.IGNORECASE,
)
# x1, mp3, B12, 4D, grade8: no leet, unless that makes a known word.
_CODE = re.compile(r"\d+[A-Za-z]{1,3}|[A-Za-z]{1,3}\d+|[A-Za-z]+[2689]\d*")
_ELEMENT = r"(?:A[cglmrstu]|B[aehikr]?|C[adeflmnorsu]?|D[bsy]|E[rsu]|F[elmr]?|G[ade]|H[efgos]?|I[nr]?|Kr?|L[airuv]|"
_ELEMENT += r"M[dgnot]|N[abdeiop]?|Os?|P[abdmortu]?|R[abefghnu]|S[bcegimnr]?|T[abehilm]|U|V|W|Xe|Yb?|Z[nr])"
_FORMULA = re.compile(rf"(?:{_ELEMENT}\d*)+")
# Four letters or more, each alone, with the same sign between them.
_SPACED = re.compile(r"(?<!\w)\w(?:([ ._*\-])\w)(?:\1\w){2,}(?!\w)")
_LONG_RUN = re.compile(r"([^\W\d_])\1{2,}")


def reveal(text: str) -> str:
    """Returns the text without what nobody sees: format characters, variation selectors, piled-up accents."""
    plain = unicodedata.normalize("NFKC", text)
    decomposed = unicodedata.normalize("NFD", plain)
    visible = [letter for letter in decomposed if letter in "\n\t" or unicodedata.category(letter) not in _INVISIBLE]
    return unicodedata.normalize("NFC", "".join(visible))


def undisguise(text: str) -> str:
    """Returns the text as it was meant: without lookalikes, leet, spaced and repeated letters, and slips."""
    return corrected_text(_LONG_RUN.sub(r"\1\1", _with_long_runs(text)))


def spellings(text: str) -> tuple[str, ...]:
    """Returns the ways in which rules read a text, lower case: a letter that goes on and on stands for 1 or 2."""
    plain = _with_long_runs(text).casefold().replace("\u2019", "'")
    return tuple(dict.fromkeys((_LONG_RUN.sub(r"\1\1", plain), _LONG_RUN.sub(r"\1", plain))))


def rule_readings(text: str) -> tuple[str, ...]:
    """Returns the ways in which phrases are looked for in a text: its spellings, with slips and without."""
    lines = [" ".join(spelling.split()) for spelling in spellings(text)]
    return tuple(dict.fromkeys((*lines, *map(corrected_text, lines))))


def _with_long_runs(text: str) -> str:
    plain = _without_lookalikes(reveal(text))
    plain = _SPACED.sub(lambda match: _joined(match[0], sign=match[1]), plain)
    return _LEET_WORD.sub(lambda match: _without_leet(match[0]), plain)


def _without_lookalikes(text: str) -> str:
    if text.isascii() or not re.search(r"[A-Za-z]", text):
        # A text in another alphabet is in another language, not in disguise.
        return text
    return re.sub(r"\w+", lambda match: _latin(match[0]), text)


def _latin(word: str) -> str:
    latin = word.translate(_LOOKALIKES)
    return latin if latin.isascii() else word


def _joined(letters: str, *, sign: str) -> str:
    # "a b o m b" is "a bomb", as "i" and "a" are words.
    article = letters[:2] if sign == " " and letters[0] in "aiAI" and len(letters) > 7 else ""
    return article + letters[len(article) :].replace(sign, "")


def _without_leet(word: str) -> str:
    if not _LEET_MARK.search(word) or _MEASURE.fullmatch(word) or _FORMULA.fullmatch(word):
        return word
    letters = [_LEET_LETTERS.get(sign, sign) for sign in word]
    if math.prod(map(len, letters)) <= _MOST_READINGS:
        known_word = most_frequent("".join(reading) for reading in product(*letters))
        if known_word is not None:
            return known_word
    return word if _CODE.fullmatch(word) else word.translate(_LEET)
