"""English words and how often they are written, so that a slip or a digit in a word can be undone before screening.

pyspellchecker keeps them (ADR 42). What it makes of a text is for screening alone; nobody is shown it.
"""

import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

from spellchecker import SpellChecker

# Newer words and contractions that students write and the library lacks. Without them "vape" would be read as "tape".
_ADDED_WORDS = """
    adderall adhd alot app apps arent bio bot brb bro btw calc chem chromebook couldnt cuz cyberbullying didnt dna
    doesnt dont ela emoji emojis fanfic fentanyl fortnite gummies hadnt haha hasnt havent hehe hijab hoodie idk
    insta instagram isnt ive juul lmao lol lowkey luv meds minecraft naloxone nana ngl opioids playlist pls ppl
    roblox robux roleplay screenshot selfie sexted sexting sextortion shouldnt shrooms snapchat stepdad stepmom stis
    tbh tech texted texting thats theres theyre thx tiktok tmrw unalive vape vaped vapes vaping vocab vpn wasnt
    werent wifi wouldnt xanax youre
    """.split()  # noqa: SIM905 (a list of so many strings is hard to read)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_LEAST_LETTERS = 3
# A text of so many words, of which most are unknown, is in another language.
_LANGUAGE_WORDS = 8
# The rest of a text stays as it is: a word takes a quarter of a millisecond, and screening holds up the event loop.
_MOST_CORRECTIONS = 50
_VOWELS = frozenset("aeiou")


def warm_up() -> None:
    """Reads the dictionary, which takes a third of a second, so that no request waits for it."""
    _dictionary()


def corrected_text(text: str) -> str:
    """Returns a text in which unknown words are read as the likeliest known ones that are one slip away.

    Names and texts in other languages stay as they are.
    """
    words = [match[0] for match in _WORD.finditer(text)]
    unknown = [word for word in words if not is_known(word)]
    if len(words) >= _LANGUAGE_WORDS and 2 * len(unknown) > len(words):
        return text
    # A capital letter begins a text, or a name.
    slips = dict.fromkeys(
        word
        for word in unknown
        if len(word) >= _LEAST_LETTERS and (word.islower() or text.isupper() or (word.istitle() and word == words[0]))
    )
    corrections = {word: _correction(word) for word in list(slips)[:_MOST_CORRECTIONS]}
    return _WORD.sub(lambda match: corrections.get(match[0], match[0]), text)


def is_known(word: str) -> bool:
    """Whether a word is in the dictionary, whatever its case."""
    return _plain(word) in _dictionary()


def most_frequent(words: Iterable[str]) -> str | None:
    """Returns the known word of three letters or more that is written most often; None if none is known."""
    known_words = [word for word in words if len(word) >= _LEAST_LETTERS and is_known(word)]
    return max(known_words, key=_frequency, default=None)


def _correction(word: str) -> str:
    typed_word = _plain(word)
    candidates = _dictionary().known(_dictionary().edit_distance_1(typed_word))
    return max(candidates, key=lambda other: (_frequency(other) * _likelihood(typed_word, other), other), default=word)


def _frequency(word: str) -> int:
    return _dictionary()[_plain(word)]


def _likelihood(typed_word: str, known_word: str) -> float:
    """How likely somebody who means a word slips in this way, against any other slip."""
    if typed_word[0] != known_word[0]:
        return 0.1
    if sorted(typed_word) == sorted(known_word):
        return 30
    if len(typed_word) < len(known_word):
        return 10
    if len(typed_word) > len(known_word):
        # A letter too many is the same one twice, more often than not.
        return 10 if any(a == b for a, b in pairwise(typed_word)) else 1
    (changed_letters,) = ({a, b} for a, b in zip(typed_word, known_word, strict=True) if a != b)
    return 10 if changed_letters <= _VOWELS else 1


def _plain(word: str) -> str:
    return word.casefold().replace("\u2019", "'")


@cache
def _dictionary() -> SpellChecker:
    dictionary = SpellChecker(language="en", distance=1)
    dictionary.word_frequency.load_words(_ADDED_WORDS)
    return dictionary
