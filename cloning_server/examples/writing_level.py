"""The reading level that a student's own writing shows, by the length of their answers and sentences.

Spelling does not decide: no word list is at hand, and without one most unknown words are names and terms. Nor do long
words: in the short answers of one pool of pupils, those who write least use the longest words, as they leave the little
ones out; the count is evidence for teachers alone.
"""

import re
from collections.abc import Iterable
from typing import Final

from cloning_server.clone import BaselineResponse
from cloning_server.examples.blank_answers import is_blank
from mesh.tutoring.form import split_sentences
from mesh.tutoring.policy import ENOUGH_ANSWERS, Writing, WritingLevel

# Length of answers by grade, as a multiple of what pupils of grades 3 to 6 write. Those are the grades of SciEntsBank
# (Dzikovska et al., "SemEval-2013 Task 7", 2013), whose answers do not tell which of the four. Beyond them it grows as
# T-units do, by 0.725 words a grade from 8.6 in grade 4 to 14.4 in grade 12 (Hunt, "Grammatical Structures Written at
# Three Grade Levels", 1965); below grade 4 that line is continued.
GRADE_FACTORS: Final = {
    "K": 0.72, "1": 0.82, "2": 0.91, "3": 1.0, "4": 1.0, "5": 1.0, "6": 1.0,
    "7": 1.07, "8": 1.14, "9": 1.22, "10": 1.29, "11": 1.36, "12": 1.43,
}  # fmt: skip
# Lines through 1,774 answers of grades 3 to 6: words per answer and per sentence by the length of the right answer, as
# a question that takes more words to answer gets more. Beyond 30 words pupils write no more.
_ANSWER_WORDS, _SENTENCE_WORDS = (6.5, 0.4), (6.5, 0.28)
_LONGEST_REFERENCE_WORDS = 30
# The mean length of a right answer there, for questions that come without one.
_USUAL_REFERENCE_WORDS = 17
# Shorter right answers, such as numbers and names, ask for no sentence.
_SENTENCE_REFERENCE_WORDS = 4
_SHORTEST_ANSWER_WORDS = 3
# Nobody writes as much to a question of a test; the work grows with the square of what is measured.
_MEASURED_CHARACTERS = 500
# Half-way, as ratios, between pupils of the pool who write short, middling and long answers.
_BELOW, _ABOVE = 0.82, 1.17
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_LONG_WORD = re.compile(r"[^\W\d_]{7,}")


def writing_of(responses: Iterable[BaselineResponse], *, grade: str | None) -> Writing:
    """Compares how much the student writes with what pupils of the grade write to the same questions.

    The ratio is the geometric mean of two: words per answer, and words per sentence.
    """
    written = [response for response in responses if _asks_for_words(response)]
    sentences = [sentence for response in written for sentence in _sentences(response.student_answer)]
    words = sum(map(_count_words, sentences))
    expected_words = sum(_expected(response, _ANSWER_WORDS, grade) for response in written)
    expected_sentence_words = sum(_expected(response, _SENTENCE_WORDS, grade) for response in written)
    level = WritingLevel.UNKNOWN
    if grade and sentences and len(written) >= ENOUGH_ANSWERS:
        answer_ratio = words / expected_words
        sentence_ratio = words / len(sentences) * len(written) / expected_sentence_words
        level = _level_of((answer_ratio * sentence_ratio) ** 0.5)
    return Writing(
        level=level,
        grade=grade or "",
        answers=len(written),
        sentences=len(sentences),
        words=words,
        long_words=sum(len(_LONG_WORD.findall(response.student_answer[:_MEASURED_CHARACTERS])) for response in written),
        expected_words=round(expected_words),
    )


def _asks_for_words(response: BaselineResponse) -> bool:
    """Whether the question asks for a sentence and has words for an answer, which so show how the student writes."""
    if is_blank(response.student_answer) or not _count(response.student_answer):
        return False
    if response.reference_answer.strip():
        return _count(response.reference_answer) >= _SENTENCE_REFERENCE_WORDS
    return _count(response.student_answer) >= _SHORTEST_ANSWER_WORDS


def _expected(response: BaselineResponse, line: tuple[float, float], grade: str | None) -> float:
    start, slope = line
    reference_words = _count(response.reference_answer) or _USUAL_REFERENCE_WORDS
    return (start + slope * min(reference_words, _LONGEST_REFERENCE_WORDS)) * GRADE_FACTORS.get(grade or "", 0.0)


def _level_of(ratio: float) -> WritingLevel:
    if ratio < _BELOW:
        return WritingLevel.BELOW
    return WritingLevel.ABOVE if ratio > _ABOVE else WritingLevel.AT


def _count(text: str) -> int:
    return sum(map(_count_words, _sentences(text)))


def _count_words(sentence: str) -> int:
    """Counts the words with letters: what is computed shows nothing of how the student writes."""
    return len(_WORD.findall(sentence))


def _sentences(text: str) -> list[str]:
    return split_sentences(text[:_MEASURED_CHARACTERS])
