"""The school grade whose readers can follow a text: the median of three published formulas.

Flesch-Kincaid (Kincaid et al., 1975) counts syllables, Coleman-Liau (1975) and the Automated Readability Index (Senter
and Smith, 1967) count letters. Short texts vary: compare means of many.
"""

import functools
import re
import statistics

import pyphen

from mesh.tutoring.form import count_words, split_sentences

_LETTERS = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+")


def reading_grade(text: str) -> float:
    """Returns the grade of a text, from about -3 (a first book) to 18 and more.

    Raises:
        ValueError: The text has no words.
    """
    sentences = split_sentences(text)
    words = [word for sentence in sentences for word in _WORD.findall(sentence)]
    if not words:
        raise ValueError("the text has no words")
    words_per_sentence = sum(map(count_words, sentences)) / len(sentences)
    letters = len(_LETTERS.findall(text)) / len(words)
    syllables = sum(map(_count_syllables, words)) / len(words)
    flesch_kincaid = 0.39 * words_per_sentence + 11.8 * syllables - 15.59
    coleman_liau = 5.88 * letters - 29.6 / words_per_sentence - 15.8
    automated = 4.71 * letters + 0.5 * words_per_sentence - 21.43
    return statistics.median((flesch_kincaid, coleman_liau, automated))


@functools.lru_cache(maxsize=1 << 14)
def _count_syllables(word: str) -> int:
    return len(_hyphenation().positions(word.lower())) + 1


@functools.cache
def _hyphenation() -> pyphen.Pyphen:
    return pyphen.Pyphen(lang="en_US")
