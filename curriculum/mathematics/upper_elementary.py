"""Templates for grades 3-5: whole numbers."""

from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic, near
from mesh.tutoring.profile import GradeBand


def multiply_facts(draw: Random) -> Exercise:
    """Multiplies numbers up to 12 with the facts of five."""
    first, second = draw.randint(2, 12), draw.randint(6, 12)
    product, fives, rest = first * second, first * 5, first * (second - 5)
    return Exercise(
        expression=f"{first} x {second}",
        steps=(
            f"Split {second} into 5 and {second - 5}.",
            f"{first} x 5 = {fives} and {first} x {second - 5} = {rest}.",
            f"Add the two parts: {fives} + {rest} = {product}.",
        ),
        result=f"{first} x {second} = {product}",
        answer=str(product),
        check=f"Check with division: {product} ÷ {second} = {first}.",
        first_step=f"{first} x 5 = {fives}, and you still need {first} x {second - 5} = {rest}.",
        thought=f"Division shows it too: {product} ÷ {second} = {first}.",
        mistakes=near(product, product + first, product - second, first + second),
    )


def divide_facts(draw: Random) -> Exercise:
    """Divides with a multiplication fact."""
    divisor, quotient = draw.randint(3, 9), draw.randint(3, 9)
    dividend = divisor * quotient
    nearby = divisor * (quotient - 1)
    return Exercise(
        expression=f"{dividend} ÷ {divisor}",
        steps=(
            f"Ask how many groups of {divisor} fit into {dividend}.",
            f"Count up with a fact you know: {divisor} x {quotient - 1} = {nearby}.",
            f"One more group gives {nearby} + {divisor} = {dividend}.",
        ),
        result=f"{dividend} ÷ {divisor} = {quotient}",
        answer=str(quotient),
        check=f"Multiply to check: {quotient} x {divisor} = {dividend}.",
        first_step=f"Count in steps of {divisor} until you reach {dividend}. How many steps is that?",
        thought=f"The fact behind it is {quotient} x {divisor} = {dividend}.",
        mistakes=near(quotient, quotient + 2, dividend - divisor),
    )


def divide_with_remainder(draw: Random) -> Exercise:
    """Divides whole numbers that leave a remainder."""
    divisor, quotient = draw.randint(4, 9), draw.randint(3, 9)
    rest = draw.randint(1, divisor - 1)
    dividend, whole = divisor * quotient + rest, divisor * quotient
    return Exercise(
        expression=f"{dividend} ÷ {divisor}",
        steps=(
            f"Find the largest multiple of {divisor} that fits: {divisor} x {quotient} = {whole}.",
            f"See what is left over: {dividend} - {whole} = {rest}.",
        ),
        result=f"{dividend} ÷ {divisor} = {quotient} remainder {rest}",
        answer=f"{quotient} remainder {rest}",
        check=f"Check: {quotient} x {divisor} + {rest} = {dividend}.",
        first_step=f"Count in steps of {divisor}, and stop just below {dividend}.",
        thought=f"The check works: {quotient} x {divisor} + {rest} = {dividend}.",
        mistakes=(
            f"{quotient} remainder {rest + 1}",
            f"{quotient - 1} remainder {rest}",
            f"{quotient + 1} remainder {rest}",
        ),
    )


def multiply_by_one_digit(draw: Random) -> Exercise:
    """Multiplies a two-digit number by its tens and ones."""
    tens, ones, factor = draw.randint(2, 9), draw.randint(2, 9), draw.randint(3, 9)
    number = 10 * tens + ones
    ten_part, one_part = 10 * tens * factor, ones * factor
    return Exercise(
        expression=f"{number} x {factor}",
        steps=(
            f"Split {number} into {10 * tens} and {ones}.",
            f"Multiply the tens: {10 * tens} x {factor} = {ten_part}.",
            f"Multiply the ones: {ones} x {factor} = {one_part}.",
            f"Add both parts: {ten_part} + {one_part} = {number * factor}.",
        ),
        result=f"{number} x {factor} = {number * factor}",
        answer=str(number * factor),
        check=f"Check with division: {number * factor} ÷ {factor} = {number}.",
        first_step=f"Multiply the tens first: {10 * tens} x {factor} = {ten_part}. Then do the ones.",
        thought=f"The two parts fit: {ten_part} + {one_part} = {number * factor}.",
        mistakes=near(number * factor, ten_part + ones, number * factor - 10),
    )


def multiply_two_digits(draw: Random) -> Exercise:
    """Multiplies two two-digit numbers with partial products."""
    number, tens, ones = draw.randint(12, 39), draw.randint(1, 3), draw.randint(2, 6)
    factor = 10 * tens + ones
    ten_part, one_part = number * 10 * tens, number * ones
    return Exercise(
        expression=f"{number} x {factor}",
        steps=(
            f"Split {factor} into {10 * tens} and {ones}.",
            f"Multiply by the tens: {number} x {10 * tens} = {ten_part}.",
            f"Multiply by the ones: {number} x {ones} = {one_part}.",
            f"Add the parts: {ten_part} + {one_part} = {number * factor}.",
        ),
        result=f"{number} x {factor} = {number * factor}",
        answer=str(number * factor),
        check=f"Check with division: {number * factor} ÷ {factor} = {number}.",
        first_step=f"Start with the tens: {number} x {10 * tens} = {ten_part}. Then multiply by the ones.",
        thought=f"The two parts are {number} x {10 * tens} = {ten_part} and {number} x {ones} = {one_part}.",
        mistakes=near(number * factor, number * tens + one_part, number * factor + 100),
    )


def add_three_digits(draw: Random) -> Exercise:
    """Adds three-digit numbers by place."""
    first, second = draw.randint(145, 480), draw.randint(127, 399)
    total = first + second
    hundreds = first // 100 * 100 + second // 100 * 100
    tens = first % 100 // 10 * 10 + second % 100 // 10 * 10
    ones = first % 10 + second % 10
    return Exercise(
        expression=f"{first} + {second}",
        steps=(
            f"Add the hundreds: {first // 100 * 100} + {second // 100 * 100} = {hundreds}.",
            f"Add the tens: {first % 100 // 10 * 10} + {second % 100 // 10 * 10} = {tens}.",
            f"Add the ones: {first % 10} + {second % 10} = {ones}.",
            f"Put them together: {hundreds} + {tens} + {ones} = {total}.",
        ),
        result=f"{first} + {second} = {total}",
        answer=str(total),
        check=f"Check by subtracting: {total} - {second} = {first}.",
        first_step=f"Add the hundreds first: {first // 100 * 100} + {second // 100 * 100} = {hundreds}.",
        thought=f"Subtracting shows it too: {total} - {second} = {first}.",
        mistakes=near(total, total - 100, total - 10),
    )


def subtract_three_digits(draw: Random) -> Exercise:
    """Subtracts three-digit numbers step by step."""
    second = draw.randint(126, 389)
    first = second + draw.randint(115, 460)
    hundreds, tens, ones = second // 100 * 100, second % 100 // 10 * 10, second % 10
    after_hundreds = first - hundreds
    after_tens = after_hundreds - tens
    return Exercise(
        expression=f"{first} - {second}",
        steps=(
            f"Subtract the hundreds: {first} - {hundreds} = {after_hundreds}.",
            f"Subtract the tens: {after_hundreds} - {tens} = {after_tens}.",
            f"Subtract the ones: {after_tens} - {ones} = {first - second}.",
        ),
        result=f"{first} - {second} = {first - second}",
        answer=str(first - second),
        check=f"Check by adding: {first - second} + {second} = {first}.",
        first_step=f"Subtract the hundreds first: {first} - {hundreds} = {after_hundreds}.",
        thought=f"Adding brings you back: {first - second} + {second} = {first}.",
        mistakes=near(first - second, first - second + 100, first - second + 20),
    )


def order_of_operations(draw: Random) -> Exercise:
    """Multiplies before it adds."""
    first, second, third = draw.randint(2, 20), draw.randint(2, 9), draw.randint(2, 9)
    product = second * third
    return Exercise(
        expression=f"{first} + {second} x {third}",
        steps=(
            f"Multiply first: {second} x {third} = {product}.",
            f"Then add: {first} + {product} = {first + product}.",
        ),
        result=f"{first} + {second} x {third} = {first + product}",
        answer=str(first + product),
        check=f"Brackets would change it: ({first} + {second}) x {third} = {(first + second) * third}.",
        first_step=f"Multiplication comes before addition: {second} x {third} = {product}.",
        thought=f"You multiplied first: {second} x {third} = {product}.",
        mistakes=near(first + product, (first + second) * third, first + second + third),
    )


_THREE, _FOUR, _FIVE = "3", "4", "5"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.G3_5, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (multiply_facts, Topic.GROUPS, (_THREE, _FOUR), "3.OA.C.7"),
        (divide_facts, Topic.GROUPS, (_THREE, _FOUR), "3.OA.C.7"),
        (divide_with_remainder, Topic.GROUPS, (_FOUR, _FIVE), "4.NBT.B.6"),
        (multiply_by_one_digit, Topic.GROUPS, (_FOUR, _FIVE), "4.NBT.B.5"),
        (multiply_two_digits, Topic.GROUPS, (_FIVE, _FOUR), "4.NBT.B.5"),
        (add_three_digits, Topic.ADDING, (_THREE, _FOUR), "3.NBT.A.2"),
        (subtract_three_digits, Topic.TAKING_AWAY, (_THREE, _FOUR), "3.NBT.A.2"),
        (order_of_operations, Topic.GROUPS, (_FIVE,), "5.OA.A.1"),
    )
)
