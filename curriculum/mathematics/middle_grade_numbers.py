"""Templates for grades 6-8: percentages, ratios, signed numbers and powers."""

from fractions import Fraction
from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic, decimal, near
from mesh.tutoring.profile import GradeBand


def percent_of(draw: Random) -> Exercise:
    """Takes a percentage of a number through ten percent."""
    percent, base = draw.choice((20, 30, 40, 60, 70, 80)), 10 * draw.randint(3, 24)
    tenth = base // 10
    share = tenth * percent // 10
    return Exercise(
        expression=f"{percent}% of {base}",
        steps=(
            f"Start with 10%: {base} ÷ 10 = {tenth}.",
            f"{percent}% is {percent // 10} times as much: {percent // 10} x {tenth} = {share}.",
        ),
        result=f"{percent}% of {base} = {share}",
        answer=str(share),
        check=f"Check as a decimal: {decimal(Fraction(percent, 100))} x {base} = {share}.",
        first_step=f"Find 10% first: {base} ÷ 10 = {tenth}. Then scale it up to {percent}%.",
        thought=f"As a decimal it is {decimal(Fraction(percent, 100))} x {base} = {share}.",
        mistakes=near(share, tenth, base - share, share + tenth),
    )


def percent_with_five(draw: Random) -> Exercise:
    """Takes a percentage that ends in five."""
    percent, base = draw.choice((15, 35, 45)), 20 * draw.randint(2, 15)
    tens, fives = base * (percent - 5) // 100, base // 20
    share = tens + fives
    return Exercise(
        expression=f"{percent}% of {base}",
        steps=(
            f"Split the percentage: {percent - 5}% of {base} = {tens}.",
            f"Find the small piece: 5% of {base} = {fives}.",
            f"Add the two: {tens} + {fives} = {share}.",
        ),
        result=f"{percent}% of {base} = {share}",
        answer=str(share),
        check=f"Check: {decimal(Fraction(percent, 100))} x {base} = {share}.",
        first_step=f"Split it into {percent - 5}% + 5% = {percent}%. The small piece is 5% of {base} = {fives}.",
        thought=f"Splitting works too: {tens} + {fives} = {share}.",
        mistakes=near(share, tens, share + fives, base - percent),
    )


def add_negative(draw: Random) -> Exercise:
    """Adds a positive number to a negative one."""
    first, second = draw.randint(6, 15), draw.randint(2, 14)
    total = second - first
    side = "negative" if total < 0 else "positive" if total > 0 else "zero"
    gap = f"{max(first, second)} - {min(first, second)} = {abs(total)}"
    ending = f"The result is {side}." if side == "zero" else f"The larger distance from zero decides the sign: {side}."
    return Exercise(
        expression=f"-{first} + {second}",
        steps=(
            f"Start at -{first} on a number line.",
            f"Move {second} to the right.",
            f"The distances differ by {gap}.",
            ending,
        ),
        result=f"-{first} + {second} = {total}",
        answer=str(total),
        check=f"Subtract to check: {total} - {second} = -{first}.",
        first_step=f"Start at -{first} on a number line and move {second} steps to the right.",
        thought=f"Subtracting brings you back: {total} - {second} = -{first}.",
        mistakes=tuple(
            str(number) for number in (first + second, -first - second, -total, total - 1) if number != total
        ),
    )


def subtract_negative(draw: Random) -> Exercise:
    """Subtracts a negative number."""
    first, second = draw.randint(2, 12), draw.randint(2, 12)
    total = first + second
    return Exercise(
        expression=f"{first} - -{second}",
        steps=(
            "Subtracting a number is adding its opposite.",
            f"The opposite of -{second} is {second}.",
            f"Add instead: {first} + {second} = {total}.",
        ),
        result=f"{first} - -{second} = {total}",
        answer=str(total),
        check=f"Check: {total} + -{second} = {first}.",
        first_step=f"Replace the subtraction: take away -{second} means add {second}.",
        thought=f"Subtracting a negative is adding: {first} + {second} = {total}.",
        mistakes=tuple(
            str(number) for number in (first - second, -total, total + 1, second - first) if number != total
        ),
    )


def multiply_negative(draw: Random) -> Exercise:
    """Multiplies with negative numbers."""
    first, second, both = draw.randint(3, 9), draw.randint(3, 9), draw.random() < 0.5
    product = first * second if both else -first * second
    other = f"-{second}" if both else str(second)
    rule = "Equal signs give a positive product." if both else "Different signs give a negative product."
    return Exercise(
        expression=f"-{first} x {other}",
        steps=(f"Multiply without the signs: {first} x {second} = {first * second}.", rule),
        result=f"-{first} x {other} = {product}",
        answer=str(product),
        check=f"Check with division: {product} ÷ {other} = -{first}.",
        first_step="Settle the sign first: compare the signs of the two factors.",
        thought=rule,
        mistakes=(str(-product), str(product + first), str(product - second)),
    )


def powers(draw: Random) -> Exercise:
    """Writes a power as a product."""
    base, exponent = draw.choice(
        ((2, 4), (2, 5), (2, 6), (3, 3), (3, 4), (4, 3), (5, 3), (6, 3), (10, 4), (7, 2), (9, 2))
    )
    value = base**exponent
    factors = " x ".join([str(base)] * exponent)
    before = base ** (exponent - 1)
    return Exercise(
        expression=f"{base}^{exponent}",
        steps=(f"The exponent {exponent} counts the factors.", f"Write them out: {factors} = {value}."),
        result=f"{base}^{exponent} = {value}",
        answer=str(value),
        check=f"Divide by {base} to check: {value} ÷ {base} = {before}.",
        first_step=f"Write {exponent} factors of {base}, then multiply from the left: {base} x {base} = {base * base}."
        if exponent > 2
        else f"The exponent says how often {base} is a factor, so multiply {base} by itself.",
        thought=f"Written out it is {factors} = {value}.",
        mistakes=near(value, base * exponent, value + base, before),
    )


def powers_in_order(draw: Random) -> Exercise:
    """Evaluates powers before products and sums."""
    base, factor, term = draw.randint(2, 6), draw.randint(2, 5), draw.randint(1, 20)
    square = base * base
    return Exercise(
        expression=f"{term} + {factor} x {base}^2",
        steps=(
            f"Powers come first: {base}^2 = {square}.",
            f"Then multiply: {factor} x {square} = {factor * square}.",
            f"Then add: {term} + {factor * square} = {term + factor * square}.",
        ),
        result=f"{term} + {factor} x {base}^2 = {term + factor * square}",
        answer=str(term + factor * square),
        check=f"Undo it to check: {term + factor * square} - {term} = {factor * square}.",
        first_step=f"Evaluate the power first: {base}^2 = {square}. Then multiply, then add.",
        thought=f"You took the power first: {base}^2 = {square}.",
        mistakes=near(term + factor * square, term + (factor * base) ** 2, (term + factor) * square),
    )


def unit_rate(draw: Random) -> Exercise:
    """Finds a rate per one."""
    rate, count = draw.randint(3, 12), draw.randint(3, 9)
    total = rate * count
    thing, plural = draw.choice(
        (("ticket", "tickets"), ("notebook", "notebooks"), ("bag", "bags"), ("sandwich", "sandwiches"))
    )
    return Exercise(
        questions=(
            f"{count} {plural} cost {total} dollars. What is the unit price?",
            f"How do I find the price of one {thing} if {count} {plural} cost {total} dollars?",
            f"what is the unit rate if you pay {total} dollars for {count} {plural}",
            f"We paid {total} dollars for {count} {plural}. How much is each {thing}?",
        ),
        steps=(f"A unit rate is for one {thing}.", f"Divide the cost by the count: {total} ÷ {count} = {rate}."),
        result=f"one {thing} costs {rate} dollars",
        answer=str(rate),
        check=f"Multiply to check: {count} x {rate} = {total}.",
    )


def equivalent_ratio(draw: Random) -> Exercise:
    """Scales a ratio."""
    first, second, scale = draw.randint(2, 5), draw.randint(6, 9), draw.randint(3, 8)
    few, many = draw.choice(
        (("cups of rice", "cups of water"), ("red beads", "blue beads"), ("cats", "dogs"), ("wins", "losses"))
    )
    return Exercise(
        questions=(
            f"The ratio of {few} to {many} is {first} to {second}. How many {many} go with {first * scale} {few}?",
            f"There are {first} {few} for every {second} {many}. I have {first * scale} {few}. How many {many}?",
            f"how do i scale {first} {few} to {second} {many} up to {first * scale} {few}",
            f"I need {second} {many} for every {first} {few}. How many {many} for {first * scale} {few}?",
        ),
        steps=(
            f"Find the scale factor: {first * scale} ÷ {first} = {scale}.",
            f"Scale the other part by it too: {second} x {scale} = {second * scale}.",
        ),
        result=f"there are {second * scale} {many}",
        answer=str(second * scale),
        check=f"Both parts have grown alike: {second * scale} ÷ {second} = {scale}.",
    )


def discount(draw: Random) -> Exercise:
    """Takes a discount off a price."""
    percent, price = draw.choice((10, 20, 25, 30, 40)), 20 * draw.randint(2, 9)
    off = price * percent // 100
    thing = draw.choice(("jacket", "game", "pair of shoes", "backpack"))
    return Exercise(
        questions=(
            f"A {thing} costs {price} dollars and is {percent}% off. What is the sale price?",
            f"How do I find the price of a {price} dollar {thing} after a {percent}% discount?",
            f"the {thing} was {price} dollars, now {percent}% off. how much do i pay",
            f"What do I pay for a {thing} of {price} dollars with {percent}% off?",
        ),
        steps=(
            f"Find the discount: {decimal(Fraction(percent, 100))} x {price} = {off}.",
            f"Take it off the price: {price} - {off} = {price - off}.",
        ),
        result=f"you pay {price - off} dollars",
        answer=str(price - off),
        check=f"You pay the rest of the percentage: {100 - percent}% of {price} = {price - off}.",
    )


def scientific_notation(draw: Random) -> Exercise:
    """Writes a large number with a power of ten."""
    digits, zeros = draw.randint(12, 98), draw.randint(3, 6)
    digits += digits % 10 == 0
    number, exponent = digits * 10**zeros, zeros + 1
    factor = decimal(Fraction(digits, 10))
    return Exercise(
        questions=(
            f"Write {number} in scientific notation.",
            f"How do I write {number} as a number times a power of ten?",
            f"whats {number} in scientific notation",
            f"Explain how {number} looks in scientific notation.",
        ),
        steps=(
            f"Put the point after the first digit: {factor}.",
            f"The point has moved {exponent} places, so the exponent is {exponent}.",
        ),
        result=f"{number} = {factor} x 10^{exponent}",
        answer=f"{factor} x 10^{exponent}",
        check=f"Divide to check: {number} ÷ 10^{exponent} = {factor}.",
    )


_SIX, _SEVEN, _EIGHT = "6", "7", "8"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.G6_8, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (percent_of, Topic.RATIOS, (_SIX, _SEVEN), "6.RP.A.3"),
        (percent_with_five, Topic.RATIOS, (_SIX, _SEVEN), "6.RP.A.3"),
        (add_negative, Topic.SIGNED, (_SEVEN,), "7.NS.A.1"),
        (subtract_negative, Topic.SIGNED, (_SEVEN, _EIGHT), "7.NS.A.1"),
        (multiply_negative, Topic.SIGNED, (_SEVEN, _EIGHT), "7.NS.A.2"),
        (powers, Topic.POWERS, (_SIX, _EIGHT), "6.EE.A.1"),
        (powers_in_order, Topic.POWERS, (_SIX, _EIGHT), "6.EE.A.1"),
        (unit_rate, Topic.RATIOS, (_SIX,), "6.RP.A.2"),
        (equivalent_ratio, Topic.RATIOS, (_SIX,), "6.RP.A.3"),
        (discount, Topic.RATIOS, (_SEVEN,), "7.RP.A.3"),
        (scientific_notation, Topic.POWERS, (_EIGHT,), "8.EE.A.4"),
    )
)
