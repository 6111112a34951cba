"""Templates for fractions and decimals, grades 3-7."""

import math
from fractions import Fraction
from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic, decimal, write
from mesh.tutoring.profile import GradeBand


def add_like_fractions(draw: Random) -> Exercise:
    """Adds fractions with one denominator."""
    bottom = draw.choice((5, 7, 9, 11))
    first = draw.randint(1, bottom - 3)
    second = draw.randint(1, bottom - first - 1)
    top = first + second
    total = Fraction(top, bottom)
    return Exercise(
        expression=f"{first}/{bottom} + {second}/{bottom}",
        steps=(
            f"The bottom numbers are equal, so keep {bottom}.",
            f"Add the top numbers: {first} + {second} = {top}.",
        ),
        result=f"{first}/{bottom} + {second}/{bottom} = {write(total)}",
        answer=write(total),
        check=f"Subtract to check: {write(total)} - {second}/{bottom} = {write(Fraction(first, bottom))}.",
        first_step=f"Keep the bottom number {bottom}, and add the top numbers {first} and {second}.",
        thought=f"Only the top numbers are added: {first} + {second} = {top}.",
        mistakes=(f"{top}/{2 * bottom}", f"{top + 1}/{bottom}", f"{abs(first - second) or 1}/{bottom}"),
    )


def _unlike(draw: Random) -> tuple[Fraction, Fraction, int]:
    """Two proper fractions of different denominators, and their common denominator."""
    bottom, other = draw.choice(((2, 3), (3, 4), (2, 5), (3, 5), (4, 6), (4, 8), (2, 7), (4, 5), (6, 8), (3, 6)))
    tops = [top for top in range(1, bottom) if math.gcd(top, bottom) == 1]
    other_tops = [top for top in range(1, other) if math.gcd(top, other) == 1]
    return Fraction(draw.choice(tops), bottom), Fraction(draw.choice(other_tops), other), math.lcm(bottom, other)


def _over(number: Fraction, bottom: int) -> str:
    """The fraction with a given denominator."""
    return f"{number.numerator * (bottom // number.denominator)}/{bottom}"


def add_unlike_fractions(draw: Random) -> Exercise:
    """Adds fractions over a common denominator."""
    first, second, bottom = _unlike(draw)
    total = first + second
    naive = f"{first.numerator + second.numerator}/{first.denominator + second.denominator}"
    return Exercise(
        expression=f"{write(first)} + {write(second)}",
        steps=(
            f"Find a common denominator: {bottom} works for both.",
            *(f"{write(part)} = {_over(part, bottom)}." for part in (first, second) if part.denominator != bottom),
            f"Add over {bottom}: {_over(first, bottom)} + {_over(second, bottom)} = {write(total)}.",
        ),
        result=f"{write(first)} + {write(second)} = {write(total)}",
        answer=write(total),
        check=f"Check: {write(total)} - {write(second)} = {write(first)}.",
        first_step=f"Use a common denominator: {write(first)} = {_over(first, bottom)}.",
        thought=f"Over {bottom} it reads {_over(first, bottom)} + {_over(second, bottom)} = {write(total)}.",
        mistakes=(
            naive,
            f"{total.numerator + 1}/{total.denominator}",
            f"{first.numerator + second.numerator}/{bottom}",
        ),
    )


def subtract_unlike_fractions(draw: Random) -> Exercise:
    """Subtracts fractions over a common denominator."""
    first, second, bottom = _unlike(draw)
    first, second = max(first, second), min(first, second)
    rest = first - second
    part = first if second.denominator == bottom else second
    return Exercise(
        expression=f"{write(first)} - {write(second)}",
        steps=(
            f"Find a common denominator: {bottom} works for both.",
            *(f"{write(part)} = {_over(part, bottom)}." for part in (first, second) if part.denominator != bottom),
            f"Subtract over {bottom}: {_over(first, bottom)} - {_over(second, bottom)} = {write(rest)}.",
        ),
        result=f"{write(first)} - {write(second)} = {write(rest)}",
        answer=write(rest),
        check=f"Check: {write(rest)} + {write(second)} = {write(first)}.",
        first_step=f"Use a common denominator: {write(part)} = {_over(part, bottom)}.",
        thought=f"Over {bottom} it reads {_over(first, bottom)} - {_over(second, bottom)} = {write(rest)}.",
        mistakes=(
            f"{rest.numerator + 1}/{rest.denominator}",
            f"{rest.numerator}/{rest.denominator + 1}",
            write(first + second),
        ),
    )


def multiply_fractions(draw: Random) -> Exercise:
    """Multiplies tops and bottoms."""
    first, second, _ = _unlike(draw)
    top, bottom = first.numerator * second.numerator, first.denominator * second.denominator
    product = first * second
    simplify = () if math.gcd(top, bottom) == 1 else (f"Simplify: {top}/{bottom} = {write(product)}.",)
    return Exercise(
        expression=f"{write(first)} x {write(second)}",
        steps=(
            f"Multiply the top numbers: {first.numerator} x {second.numerator} = {top}.",
            f"Multiply the bottom numbers: {first.denominator} x {second.denominator} = {bottom}.",
            *simplify,
        ),
        result=f"{write(first)} x {write(second)} = {write(product)}",
        answer=write(product),
        check=f"Check with division: {write(product)} ÷ {write(second)} = {write(first)}.",
        first_step=f"Multiply the top numbers first: {first.numerator} x {second.numerator} = {top}.",
        thought=f"It is a part of {write(second)}, so it is smaller than that.",
        mistakes=(f"{top}/{first.denominator + second.denominator}", write(first + second), f"{top + 1}/{bottom}"),
    )


def multiply_fraction_by_whole(draw: Random) -> Exercise:
    """Repeats a fraction."""
    bottom, times = draw.choice((3, 4, 5, 7, 8)), draw.randint(2, 6)
    top = draw.choice([number for number in range(1, bottom) if math.gcd(number, bottom) == 1])
    product = Fraction(top * times, bottom)
    simplify = (
        ()
        if write(product) == f"{top * times}/{bottom}"
        else (f"Simplify: {top * times}/{bottom} = {write(product)}.",)
    )
    return Exercise(
        expression=f"{times} x {top}/{bottom}",
        steps=(
            f"Think of {times} copies of {top}/{bottom}.",
            f"Multiply the top number: {times} x {top} = {times * top}.",
            f"The bottom number stays {bottom}.",
            *simplify,
        ),
        result=f"{times} x {top}/{bottom} = {write(product)}",
        answer=write(product),
        check=f"Check with division: {write(product)} ÷ {times} = {top}/{bottom}.",
        first_step=f"Multiply only the top number: {times} x {top} = {times * top}. The bottom stays as it is.",
        thought=f"It is {times} copies of {top}/{bottom}.",
        mistakes=(f"{times * top}/{times * bottom}", f"{times + top}/{bottom}", f"{times * top + 1}/{bottom}"),
    )


def divide_by_unit_fraction(draw: Random) -> Exercise:
    """Counts how many unit fractions fit into a whole number."""
    whole, bottom = draw.randint(2, 9), draw.randint(2, 8)
    return Exercise(
        expression=f"{whole} ÷ 1/{bottom}",
        steps=(
            f"Ask how many pieces of size 1/{bottom} fit into {whole}.",
            f"One whole has {bottom} such pieces.",
            f"{whole} wholes have {whole} x {bottom} = {whole * bottom} pieces.",
        ),
        result=f"{whole} ÷ 1/{bottom} = {whole * bottom}",
        answer=str(whole * bottom),
        check=f"Multiply to check: {whole * bottom} x 1/{bottom} = {whole}.",
        first_step=f"One whole holds {bottom} pieces of size 1/{bottom}. You have {whole} wholes.",
        thought=f"Small pieces fit many times: {whole * bottom} x 1/{bottom} = {whole}.",
        mistakes=(f"{whole}/{bottom}", str(whole + bottom), str(whole * bottom + bottom)),
    )


def divide_fractions(draw: Random) -> Exercise:
    """Divides by multiplying with the reciprocal."""
    first, second, _ = _unlike(draw)
    quotient, flipped = first / second, 1 / second
    reciprocal = f"{flipped.numerator}/{flipped.denominator}"
    return Exercise(
        expression=f"{write(first)} ÷ {write(second)}",
        steps=(
            f"Dividing by {write(second)} is multiplying by its reciprocal, {reciprocal}.",
            f"Multiply: {write(first)} x {reciprocal} = {write(quotient)}.",
        ),
        result=f"{write(first)} ÷ {write(second)} = {write(quotient)}",
        answer=write(quotient),
        check=f"Multiply to check: {write(quotient)} x {write(second)} = {write(first)}.",
        first_step=f"Turn the second fraction over: multiply {write(first)} by {reciprocal}.",
        thought=f"Multiplying brings you back: {write(quotient)} x {write(second)} = {write(first)}.",
        mistakes=(write(first * second), write(second / first), write(quotient + 1)),
    )


def add_decimals(draw: Random) -> Exercise:
    """Adds decimals with aligned places."""
    first = Fraction(10 * draw.randint(1, 8) + draw.randint(1, 9), 10)
    second = Fraction(10 * draw.randint(11, 68) + draw.randint(1, 9), 100)
    total = first + second
    return Exercise(
        expression=f"{decimal(first)} + {decimal(second)}",
        steps=(
            f"Line up the decimal points, so {decimal(first)} becomes {decimal(first)}0.",
            f"Add the wholes: {int(first)} + {int(second)} = {int(first) + int(second)}.",
            f"Add the rest: {decimal(first % 1)} + {decimal(second % 1)} = {decimal(first % 1 + second % 1)}.",
        ),
        result=f"{decimal(first)} + {decimal(second)} = {decimal(total)}",
        answer=decimal(total),
        check=f"Subtract to check: {decimal(total)} - {decimal(second)} = {decimal(first)}.",
        first_step=f"Line up the points and add the wholes: {int(first)} + {int(second)} = {int(first) + int(second)}.",
        thought=f"Subtracting shows it too: {decimal(total)} - {decimal(second)} = {decimal(first)}.",
        mistakes=(decimal(total + 1), decimal(total - Fraction(1, 10)), decimal(total + Fraction(9, 100))),
    )


def subtract_decimals(draw: Random) -> Exercise:
    """Subtracts decimals in two steps."""
    second = Fraction(draw.randint(112, 399), 100)
    first = Fraction(draw.randint(45, 99), 10)
    whole, rest = int(second), second % 1
    middle = first - whole
    return Exercise(
        expression=f"{decimal(first)} - {decimal(second)}",
        steps=(
            f"Take away the wholes: {decimal(first)} - {whole} = {decimal(middle)}.",
            f"Take away the rest: {decimal(middle)} - {decimal(rest)} = {decimal(first - second)}.",
        ),
        result=f"{decimal(first)} - {decimal(second)} = {decimal(first - second)}",
        answer=decimal(first - second),
        check=f"Add to check: {decimal(first - second)} + {decimal(second)} = {decimal(first)}.",
        first_step=f"Take away the wholes first: {decimal(first)} - {whole} = {decimal(middle)}.",
        thought=f"Adding brings you back: {decimal(first - second)} + {decimal(second)} = {decimal(first)}.",
        mistakes=(decimal(first - second + 1), decimal(first - second + Fraction(1, 10)), decimal(first + second)),
    )


def multiply_decimals(draw: Random) -> Exercise:
    """Multiplies as whole numbers and places the point."""
    first, second = draw.randint(2, 9), draw.randint(11, 49)
    # "2.0" would be written without its decimal place, which the steps count.
    second += second % 10 == 0
    product = Fraction(first * second, 100)
    factor, other = decimal(Fraction(first, 10)), decimal(Fraction(second, 10))
    return Exercise(
        expression=f"{factor} x {other}",
        steps=(
            f"Multiply without the points: {first} x {second} = {first * second}.",
            "Count the decimal places: one and one make two.",
            f"Move the point two places: {first * second} ÷ 100 = {decimal(product)}.",
        ),
        result=f"{factor} x {other} = {decimal(product)}",
        answer=decimal(product),
        check=f"Divide to check: {decimal(product)} ÷ {factor} = {other}.",
        first_step=f"Multiply without the points: {first} x {second} = {first * second}. Then place the point.",
        thought=f"Without the points it is {first} x {second} = {first * second}.",
        mistakes=(decimal(product * 10), decimal(product / 10), decimal(product + Fraction(1, 10))),
    )


_FOUR, _FIVE, _SIX, _SEVEN = "4", "5", "6", "7"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=band, grades=grades, standard=standard)
    for build, topic, band, grades, standard in (
        (add_like_fractions, Topic.FRACTIONS, GradeBand.G3_5, (_FOUR,), "4.NF.B.3"),
        (add_unlike_fractions, Topic.FRACTIONS, GradeBand.G3_5, (_FIVE,), "5.NF.A.1"),
        (subtract_unlike_fractions, Topic.FRACTIONS, GradeBand.G3_5, (_FIVE,), "5.NF.A.1"),
        (multiply_fractions, Topic.FRACTIONS, GradeBand.G3_5, (_FIVE,), "5.NF.B.4"),
        (multiply_fraction_by_whole, Topic.FRACTIONS, GradeBand.G3_5, (_FOUR, _FIVE), "4.NF.B.4"),
        (divide_by_unit_fraction, Topic.FRACTIONS, GradeBand.G3_5, (_FIVE,), "5.NF.B.7"),
        (divide_fractions, Topic.FRACTIONS, GradeBand.G6_8, (_SIX, _SEVEN), "6.NS.A.1"),
        (add_decimals, Topic.DECIMALS, GradeBand.G3_5, (_FIVE,), "5.NBT.B.7"),
        (subtract_decimals, Topic.DECIMALS, GradeBand.G3_5, (_FIVE,), "5.NBT.B.7"),
        (multiply_decimals, Topic.DECIMALS, GradeBand.G6_8, (_SIX,), "6.NS.B.3"),
    )
)
