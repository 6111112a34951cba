"""An exercise with its steps, and the template that draws its numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from random import Random

from mesh.tutoring.profile import GradeBand


class Topic(StrEnum):
    """What an exercise is about; decides the words for a learning style."""

    ADDING = "adding"
    TAKING_AWAY = "taking away"
    GROUPS = "groups"
    FRACTIONS = "fractions"
    DECIMALS = "decimals"
    RATIOS = "ratios"
    SHAPES = "shapes"
    ALGEBRA = "algebra"
    DATA = "data"
    SIGNED = "signed numbers"
    POWERS = "powers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exercise:
    """One exercise with numbers.

    Attributes:
        steps: The steps, one short sentence each, in the words of the grade.
        result: What comes out, such as `6 x 7 = 42`, without a full stop.
        answer: The answer alone.
        questions: At least four ways to ask; empty if the expression says it all.
        expression: What a student would write, if code can compute it; then answers to it can be checked.
        check: A sentence that checks the result.
        first_step: A true step towards the answer that does not say it, for a wrong answer.
        thought: A sound thought to add to a right answer.
        mistakes: Plausible wrong answers.
    """

    steps: tuple[str, ...]
    result: str
    answer: str
    questions: tuple[str, ...] = ()
    expression: str = ""
    check: str = ""
    first_step: str = ""
    thought: str = ""
    mistakes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Draws exercises of one kind.

    Attributes:
        build: Returns an exercise with drawn numbers.
        topic: What it is about.
        band: The grade band.
        grades: The grades whose students meet it.
        standard: The code of its standard, without the prefix of the Common Core.
    """

    build: Callable[[Random], Exercise]
    topic: Topic
    band: GradeBand
    grades: tuple[str, ...]
    standard: str

    @property
    def name(self) -> str:
        """The name of the function that builds it."""
        return self.build.__name__


def near(answer: int, *others: int) -> tuple[str, ...]:
    """Returns wrong whole answers: the given ones, and some close by."""
    candidates = (*others, answer + 1, answer - 1, answer + 10, answer + 2)
    return tuple(dict.fromkeys(str(number) for number in candidates if number != answer and number >= 0))


def write(number: Fraction) -> str:
    """Returns a fraction in lowest terms, or a whole number."""
    return str(number.numerator) if number.denominator == 1 else f"{number.numerator}/{number.denominator}"


def decimal(number: Fraction) -> str:
    """Returns a decimal fraction exactly; its denominator must divide a power of ten."""
    scaled = abs(number) * 10**6
    if scaled.denominator != 1:
        raise ValueError("the decimal fraction has more than six places")
    digits = f"{scaled.numerator:07d}"
    return f"{'-' if number < 0 else ''}{digits[:-6]}.{digits[-6:]}".rstrip("0").rstrip(".")
