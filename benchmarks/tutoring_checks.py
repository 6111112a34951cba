"""What the tutoring benchmark reads from replies; each check sees the words of a reply alone."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import split_sentences
from mesh.tutoring.judgement import Judgement, contains_answer, judgement_in

# Words of a run that should not come back, and how often it then does.
_RUN_WORDS, _RUN_TIMES = 4, 3


def settles(reply: str, verdict: AnswerVerdict, result: str) -> bool:
    """Whether a reply confirms a right result, or corrects a wrong one: says that it is wrong, or what is right."""
    stated = judgement_in(reply)
    if verdict is AnswerVerdict.CORRECT:
        return stated is Judgement.RIGHT
    return stated is Judgement.WRONG or (stated is Judgement.NONE and contains_answer(reply, result))


def is_stuck(reply: str) -> bool:
    """Whether a reply is empty, says a sentence twice, or four words in a row three times."""
    words = _words(reply)
    if not words:
        return True
    runs = Counter(tuple(words[start : start + _RUN_WORDS]) for start in range(len(words) - _RUN_WORDS + 1))
    sentences = Counter(" ".join(_words(sentence)) for sentence in split_sentences(reply))
    return max(sentences.values(), default=1) > 1 or max(runs.values(), default=0) >= _RUN_TIMES


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Returns how well two orders agree, from -1 to 1, with ties taken into account (Kendall's tau-b, 1945)."""
    agreed, first_ties, second_ties, total = 0, 0, 0, 0
    for (first, second), (other_first, other_second) in itertools.combinations(pairs, 2):
        first_sign, second_sign = _sign(first - other_first), _sign(second - other_second)
        agreed += first_sign * second_sign
        first_ties += first_sign == 0
        second_ties += second_sign == 0
        total += 1
    scale = math.sqrt((total - first_ties) * (total - second_ties))
    return agreed / scale if scale else 0.0


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower().replace("\u2019", "'"))
