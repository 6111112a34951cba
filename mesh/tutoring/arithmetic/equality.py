"""Whether two answers are the same number, whatever their notation."""

import re

from mesh.tutoring.arithmetic.chains import Chain, find_chains
from mesh.tutoring.arithmetic.expression import Expression
from mesh.tutoring.arithmetic.quantity import PERCENT, UNITS, Notation, Quantity, write_number, write_quantity

# Longer texts hold a thought, not a number.
_MAX_CHARS = 200
_MAX_WORDS_AFTER = 2
_BEFORE_REFERENCE = frozenset("a an answer are equals is it it's result sum the there total".split())  # noqa: SIM905
_BEFORE_ANSWER = _BEFORE_REFERENCE | frozenset(
    [
        "and",
        "be",
        "because",
        "calculated",
        "found",
        "get",
        "gives",
        "got",
        "guess",
        "have",
        "hmm",
        "i",
        "i'm",
        "its",
        "makes",
        "maybe",
        "my",
        "of",
        "ok",
        "our",
        "probably",
        "said",
        "say",
        "so",
        "sure",
        "that",
        "that's",
        "therefore",
        "they",
        "think",
        "this",
        "thought",
        "um",
        "was",
        "we",
        "were",
        "would",
        "you",
    ]
)
_LENIENT = frozenset({"money", "euro", "sterling", "percent"})
_AREA_WORDS = frozenset({"square", "cubic", "sq", "cu"})
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
# Words that make another number of the one beside them, or say that it is not meant exactly.
_CHANGES = re.compile(
    r"\b(?:not|n't|isn't|about|around|almost|nearly|roughly|approximately|approx|more|less|fewer|between|over|under|above"
    r"|below|least|most|dozens?|hundreds?|thousands?|tens|ones|pairs?|squared|cubed|root|thirds?|fourths?|quarters?"
    r"|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|halves|double|twice|triple|or|either|maybe"
    r"|infinity|billions?|trillions?|to|each|per|by)\b|[≈~<>±√²³^&#@]"
)
_VARIABLE = re.compile(r"^(?:[a-z]\s*)?=\s*(?!=)")
# Words behind a number that are not what is counted.
_NO_NOUNS = frozenset(
    {"is", "right", "in", "all", "total", "altogether", "and", "of", "the", "answer", "left", "i", "think"}
)
_NOUN = re.compile(r"\s*([^\W\d_]+)")


def same_number(reference: str, answer: str) -> bool | None:
    """Returns whether an answer is the number of a reference; None if either is no number, or the rest of it matters.

    Numbers in words, fractions, decimals, percentages and units of school are compared exactly. A reference is a number
    and at most two words; an answer may say "I think it is" first. A rounded value is neither the same nor another, and
    a number that lacks the unit of the reference is not judged if it is equal.
    """
    expected, offered = _number_in(reference, before=_BEFORE_REFERENCE), _number_in(answer, before=_BEFORE_ANSWER)
    if expected is None or offered is None or (expected.noun and offered.noun and expected.noun != offered.noun):
        return None
    if expected.remainder is not None or offered.remainder is not None:
        pairs = [(number.expression.value.number, number.remainder) for number in (expected, offered)]
        return None if None in {expected.remainder, offered.remainder} else pairs[0] == pairs[1]
    first, second = expected.expression.value, offered.expression.value
    if first.unit and second.unit and first.unit.dimension != second.unit.dimension:
        return None
    if is_same_quantity(first, second):
        lacks = lacks_unit(second, first) or (expected.noun in _AREA_WORDS and not offered.noun)
        # "7 x 9 = 56" holds the number 56, but is not right.
        return True if expected.is_true and offered.is_true and not lacks else None
    return None if _is_rounded(expected.expression, offered.expression) else False


def lacks_unit(offer: Quantity, reference: Quantity) -> bool:
    """Whether an offer leaves out a unit of measurement; signs of money and percent are often left out."""
    return reference.unit is not None and reference.unit.dimension not in _LENIENT and offer.unit is None


def is_same_quantity(first: Quantity, second: Quantity) -> bool:
    """Whether two quantities are equal; one without a unit is taken in the other's, or as a share for a percentage."""
    if first.unit and second.unit:
        return first.unit.dimension == second.unit.dimension and first.size == second.size
    if first.unit or second.unit:
        return first.number == second.number or (_is_percentage(first, second) and first.size == second.size)
    return first.number == second.number


def write_like(expression: Expression, other: Expression) -> str:
    """Returns the value of a number in the unit and notation of another; rounded, with "about", if it has no end."""
    value, like = expression.value, other.value
    if value.unit and like.unit and value.unit.dimension == like.unit.dimension:
        return write_quantity(value.in_unit(like.unit))
    if like.unit and like.unit.symbol == PERCENT:
        return write_quantity(Quantity(number=value.size * 100, unit=UNITS[PERCENT], notation=Notation.DECIMAL))
    if like.notation is Notation.FRACTION:
        written = write_number(value.size, notation=Notation.FRACTION)
        if written != expression.text:
            return written
    decimal = write_number(value.size, notation=Notation.DECIMAL)
    return f"about {float(round(value.size, 3))}" if "/" in decimal else decimal


def _is_percentage(first: Quantity, second: Quantity) -> bool:
    return any(quantity.unit is not None and quantity.unit.symbol == PERCENT for quantity in (first, second))


def _is_rounded(first: Expression, second: Expression) -> bool:
    """Whether one is the other, rounded to the decimals that it has."""
    for rounded, exact in ((first, second), (second, first)):
        places = len(rounded.text.partition(".")[2])
        value = exact.value.number
        if places and value != rounded.value.number and round(value, places) == rounded.value.number:
            return True
    return False


class _AnswerNumber:
    """The one number of an answer, with the word behind it, and whether the equation before it is true."""

    def __init__(self, chain: Chain, expression: Expression, *, noun: str, is_true: bool) -> None:
        self.expression = expression
        self.remainder = chain.remainder
        self.noun = noun
        self.is_true = is_true


def _number_in(text: str, *, before: frozenset[str]) -> _AnswerNumber | None:
    """The number that a text is; None if it holds another one, an expression, or more words than those `before` it."""
    answer = text.strip().lower().replace("\u2019", "'")
    if not 0 < len(answer) <= _MAX_CHARS:
        return None
    answer = _VARIABLE.sub("", answer)
    chains = find_chains(answer).chains
    if len(chains) != 1:
        return None
    chain = chains[0]
    rest = f"{answer[: chain.start]} {answer[chain.end :]}"
    sides = [side for side in chain.sides if side.is_literal]
    if chain.is_open or not sides or _CHANGES.search(rest) or re.search(r"[0-9]", rest):
        return None
    words_after = _WORD.findall(answer[chain.end :])
    # A number in words may be none: "one watches for danger".
    most = 1 if chain.is_spoken and not set(words_after) <= _NO_NOUNS else _MAX_WORDS_AFTER
    if len(words_after) > most or not before.issuperset(_WORD.findall(answer[: chain.start])):
        return None
    noun = _NOUN.match(answer[chain.end :])
    is_true = all(is_same_quantity(side.value, sides[-1].value) for side in chain.sides)
    return _AnswerNumber(chain, sides[-1], noun=_singular(noun[1]) if noun else "", is_true=is_true)


def _singular(noun: str) -> str:
    return "" if noun in _NO_NOUNS else noun.removesuffix("s")
