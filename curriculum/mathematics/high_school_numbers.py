"""Templates for grades 9-12: powers, logarithms, growth and rational numbers."""

from fractions import Fraction
from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic, decimal, write
from mesh.tutoring.profile import GradeBand


def negative_exponents(draw: Random) -> Exercise:
    """Evaluates a power with a negative exponent."""
    base, exponent = draw.choice(((2, 3), (2, 4), (3, 2), (3, 3), (4, 2), (5, 2), (5, 3), (6, 2), (10, 2), (10, 3)))
    value = base**exponent
    return Exercise(
        expression=f"{base}^-{exponent}",
        steps=(
            f"A negative exponent means the reciprocal of {base}^{exponent}.",
            f"Evaluate the positive power: {base}^{exponent} = {value}.",
            f"Take its reciprocal: 1/{value}.",
        ),
        result=f"{base}^-{exponent} = 1/{value}",
        answer=f"1/{value}",
        check=f"The two powers multiply to one: {base}^{exponent} x 1/{value} = 1.",
        first_step=f"Rewrite it as the reciprocal of {base}^{exponent}. The value is not negative.",
        thought=f"It is the reciprocal of {base}^{exponent} = {value}.",
        mistakes=(str(-value), str(-base * exponent), f"1/{base * exponent + 1}"),
    )


def power_expression(draw: Random) -> Exercise:
    """Evaluates an expression with the square of a negative number."""
    base, factor, term = draw.randint(2, 9), draw.randint(2, 6), draw.randint(2, 9)
    square, product = base * base, factor * term
    return Exercise(
        expression=f"(-{base})^2 - {factor} x {term}",
        steps=(
            f"The brackets belong to the power: (-{base})^2 = {square}.",
            f"Multiply: {factor} x {term} = {product}.",
            f"Subtract: {square} - {product} = {square - product}.",
        ),
        result=f"(-{base})^2 - {factor} x {term} = {square - product}",
        answer=str(square - product),
        check=f"Undo the subtraction: {square - product} + {product} = {square}.",
        first_step=f"Evaluate the power first: (-{base})^2 = {square}, because the brackets include the sign.",
        thought=f"The square of a negative number is positive: (-{base})^2 = {square}.",
        mistakes=(str(-square - product), str(square - product + 2), str((square - factor) * term + 1)),
    )


def rational_sum(draw: Random) -> Exercise:
    """Subtracts rational numbers with a sign change."""
    pairs = ("2/3 5/4", "3/5 7/2", "1/6 3/4", "2/5 9/10", "1/3 7/5", "3/8 5/6", "2/7 3/2", "1/4 5/3", "2/9 3/4")
    first, second = map(Fraction, draw.choice(pairs).split())
    bottom = first.denominator * second.denominator
    tops = first.numerator * second.denominator, second.numerator * first.denominator
    rest = first - second
    return Exercise(
        expression=f"{write(first)} - {write(second)}",
        steps=(
            f"Choose the common denominator {first.denominator} x {second.denominator} = {bottom}.",
            f"Rewrite both: {write(first)} = {tops[0]}/{bottom} and {write(second)} = {tops[1]}/{bottom}.",
            f"Subtract the numerators: {tops[0]} - {tops[1]} = {tops[0] - tops[1]}.",
        ),
        result=f"{write(first)} - {write(second)} = {write(rest)}",
        answer=write(rest),
        check=f"Add to check: {write(rest)} + {write(second)} = {write(first)}.",
        first_step=f"Over {bottom}: {write(first)} = {tops[0]}/{bottom} and {write(second)} = {tops[1]}/{bottom}.",
        thought=f"It must be negative, because {write(second)} is larger than {write(first)}.",
        mistakes=(write(-rest), write(first + second), write(rest + Fraction(1, bottom))),
    )


def growth_expression(draw: Random) -> Exercise:
    """Evaluates two periods of compound growth."""
    percent, start = draw.choice((10, 20, 30, 40, 50)), 100 * draw.randint(2, 9)
    factor = 1 + Fraction(percent, 100)
    once, twice, square = start * factor, start * factor**2, decimal(factor**2)
    return Exercise(
        expression=f"{start} x {decimal(factor)}^2",
        steps=(
            f"Square the growth factor: {decimal(factor)}^2 = {decimal(factor**2)}.",
            f"Multiply by the starting value: {start} x {decimal(factor**2)} = {decimal(twice)}.",
        ),
        result=f"{start} x {decimal(factor)}^2 = {decimal(twice)}",
        answer=decimal(twice),
        check=f"Step by step: {start} x {decimal(factor)} = {once}, and {once} x {decimal(factor)} = {decimal(twice)}.",
        first_step=f"The exponent belongs to the factor alone: {decimal(factor)} x {decimal(factor)} = {square}.",
        thought=f"Growing twice gives the same: {decimal(once)} x {decimal(factor)} = {decimal(twice)}.",
        mistakes=(decimal(start * (1 + Fraction(2 * percent, 100))), decimal(once), decimal(twice + 10)),
    )


def quotient_of_powers(draw: Random) -> Exercise:
    """Divides powers with one base."""
    base, low, gap = draw.choice((2, 3, 5, 10)), draw.randint(2, 4), draw.randint(2, 3)
    value = base**gap
    return Exercise(
        expression=f"{base}^{low + gap} ÷ {base}^{low}",
        steps=(
            "Powers of one base divide by subtracting exponents.",
            f"Subtract: {low + gap} - {low} = {gap}.",
            f"Evaluate what remains: {base}^{gap} = {value}.",
        ),
        result=f"{base}^{low + gap} ÷ {base}^{low} = {value}",
        answer=str(value),
        check=f"Check by multiplying: {value} x {base}^{low} = {base ** (low + gap)}.",
        first_step=f"Keep the base and subtract the exponents: {low + gap} - {low} = {gap}.",
        thought=f"The exponents subtract, and {base}^{gap} = {value}.",
        mistakes=(str(value * base), str(value + base), str(base * (low + gap))),
    )


def evaluate_logarithm(draw: Random) -> Exercise:
    """Evaluates a logarithm as an exponent."""
    base, exponent = draw.choice(
        ((2, 3), (2, 4), (2, 5), (2, 6), (3, 2), (3, 3), (3, 4), (4, 2), (4, 3), (5, 2), (5, 3), (10, 3), (10, 4))
    )
    value = base**exponent
    return Exercise(
        questions=(
            f"What is the logarithm of {value} with base {base}?",
            f"How do I evaluate log base {base} of {value}?",
            f"log base {base} of {value} = ? i dont get logs",
            f"Explain what log_{base}({value}) asks and how to find it.",
        ),
        steps=(
            f"The logarithm asks for the exponent that turns {base} into {value}.",
            f"Try powers of {base}: {base}^{exponent - 1} = {base ** (exponent - 1)}, and {base}^{exponent} = {value}.",
        ),
        result=f"the logarithm is {exponent}",
        answer=str(exponent),
        check=f"Raise the base to check: {base}^{exponent} = {value}.",
    )


def compound_interest(draw: Random) -> Exercise:
    """Computes compound interest over two years."""
    percent, start = draw.choice((4, 5, 6, 8, 10)), 1000 * draw.randint(1, 6)
    factor = 1 + Fraction(percent, 100)
    once, twice = start * factor, start * factor**2
    return Exercise(
        questions=(
            f"{start} dollars earn {percent}% interest a year, compounded yearly. How much is there after 2 years?",
            f"How do I compute compound interest on {start} dollars at {percent}% for 2 years?",
            f"i put {start} dollars in a bank at {percent}% compounded yearly, what do i have after 2 years",
            f"Find the balance after 2 years: {start} dollars, {percent}% a year, compounded once a year.",
        ),
        steps=(
            f"The growth factor is 1 + {decimal(factor - 1)} = {decimal(factor)}.",
            f"After one year: {start} x {decimal(factor)} = {decimal(once)}.",
            f"After two years: {decimal(once)} x {decimal(factor)} = {decimal(twice)}.",
        ),
        result=f"the balance is {decimal(twice)} dollars",
        answer=decimal(twice),
        check=f"In one formula: {start} x {decimal(factor)}^2 = {decimal(twice)}.",
    )


_NINE, _TEN, _ELEVEN, _TWELVE = "9", "10", "11", "12"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.G9_12, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (negative_exponents, Topic.POWERS, (_NINE, _ELEVEN), "HSN-RN.A.1"),
        (power_expression, Topic.POWERS, (_NINE, _TEN), "HSA-SSE.A.1"),
        (rational_sum, Topic.FRACTIONS, (_NINE, _TEN), "HSA-APR.D.7"),
        (growth_expression, Topic.POWERS, (_NINE, _ELEVEN, _TWELVE), "HSF-LE.A.2"),
        (quotient_of_powers, Topic.POWERS, (_NINE, _ELEVEN, _TWELVE), "HSN-RN.A.2"),
        (evaluate_logarithm, Topic.POWERS, (_ELEVEN, _TWELVE), "HSF-LE.A.4"),
        (compound_interest, Topic.POWERS, (_ELEVEN, _TWELVE), "HSA-SSE.B.3"),
    )
)
