"""Templates for grades 9-12: equations, functions and the plane."""

from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic
from mesh.tutoring.profile import GradeBand


def factor_quadratic(draw: Random) -> Exercise:
    """Solves a quadratic equation by factoring."""
    first = draw.randint(1, 5)
    second = draw.randint(first + 1, 8)
    total, product = first + second, first * second
    return Exercise(
        questions=(
            f"Solve x^2 - {total}x + {product} = 0.",
            f"How do I factor x^2 - {total}x + {product} = 0?",
            f"what are the roots of x^2 - {total}x + {product} = 0 and how do i get them",
            f"Can you walk me through x^2 - {total}x + {product} = 0 by factoring?",
        ),
        steps=(
            f"Find two numbers with product {product} and sum {total}.",
            f"They are {first} and {second}: {first} x {second} = {product} and {first} + {second} = {total}.",
            f"So the equation reads (x - {first})(x - {second}) = 0.",
            "A product is zero exactly if one of its factors is zero.",
        ),
        result=f"x = {first} or x = {second}",
        answer=f"{first}",
        check=f"Substitute the first root: {first}^2 - {total} x {first} + {product} = 0.",
    )


def arithmetic_sequence(draw: Random) -> Exercise:
    """Finds a term of an arithmetic sequence."""
    start, step, index = draw.randint(2, 15), draw.randint(3, 9), draw.randint(10, 30)
    jumps = (index - 1) * step
    row = ", ".join(str(start + step * place) for place in range(4))
    return Exercise(
        questions=(
            f"What is term number {index} of the sequence {row}, ...?",
            f"How do I find a_{index} for the arithmetic sequence {row}, ...?",
            f"the sequence goes {row}. i need term {index}",
            f"Show me how to compute term {index} of {row}, and so on.",
        ),
        steps=(
            f"Find the common difference: {start + step} - {start} = {step}.",
            f"Term {index} is {index - 1} steps after the first: {index - 1} x {step} = {jumps}.",
            f"Add the first term: {start} + {jumps} = {start + jumps}.",
        ),
        result=f"term {index} is {start + jumps}",
        answer=str(start + jumps),
        check=f"Work back to check: {start + jumps} - {jumps} = {start}.",
    )


def geometric_sequence(draw: Random) -> Exercise:
    """Finds a term of a geometric sequence."""
    start, ratio, index = draw.randint(2, 7), draw.randint(2, 3), draw.randint(5, 7)
    power = ratio ** (index - 1)
    row = ", ".join(str(start * ratio**place) for place in range(3))
    return Exercise(
        questions=(
            f"What is term number {index} of the geometric sequence {row}, ...?",
            f"How do I find term {index} of {row}, ... without writing them all?",
            f"geometric sequence {row}, whats the {index}th term",
            f"Please explain the formula for term {index} of the geometric sequence {row}, ...",
        ),
        steps=(
            f"Find the common ratio: {start * ratio} ÷ {start} = {ratio}.",
            f"Raise it to one less than the index, {index} - 1 = {index - 1}: {ratio}^{index - 1} = {power}.",
            f"Multiply by the first term: {start} x {power} = {start * power}.",
        ),
        result=f"term {index} is {start * power}",
        answer=str(start * power),
        check=f"Divide to check: {start * power} ÷ {power} = {start}.",
    )


def system_of_equations(draw: Random) -> Exercise:
    """Solves a system by adding its equations."""
    y = draw.randint(1, 8)
    x = y + draw.randint(1, 7)
    total, gap = x + y, x - y
    return Exercise(
        questions=(
            f"Solve the system x + y = {total} and x - y = {gap}.",
            f"How do I use elimination on x + y = {total}, x - y = {gap}?",
            f"x + y = {total} and x - y = {gap}, find x and y",
            f"I am stuck on the system x + y = {total}, x - y = {gap}. What is the method?",
        ),
        steps=(
            "Add the equations, so that y cancels and 2x remains.",
            f"The right sides add up: {total} + {gap} = {2 * x}.",
            f"Divide by 2 to get x: {2 * x} ÷ 2 = {x}.",
            f"Substitute into the first equation to get y: {total} - {x} = {y}.",
        ),
        result=f"x = {x} and y = {y}",
        answer=f"{x}",
        check=f"Test the second equation: {x} - {y} = {gap}.",
    )


def sine_of_triangle(draw: Random) -> Exercise:
    """Finds sine and cosine in a right triangle."""
    first, second, third = draw.choice(
        ((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (12, 35, 37), (9, 40, 41))
    )
    name, side = draw.choice((("sine", "opposite"), ("cosine", "adjacent")))
    value = f"{first}/{third}"
    return Exercise(
        questions=(
            f"A right triangle has the {side} side {first} and the hypotenuse {third}. What is its {name}?",
            f"How do I find the {name} if the {side} side is {first} and the hypotenuse is {third}?",
            f"{side} side {first}, hypotenuse {third}. whats the {name}",
            f"Explain the {name} with a right triangle: {side} side {first}, hypotenuse {third}.",
        ),
        steps=(
            f"The {name} is the ratio of the {side} side to the hypotenuse.",
            f"Write the ratio: {value}.",
            f"The other leg is {second}: {first}^2 + {second}^2 = {third}^2.",
        ),
        result=f"the {name} is {value}",
        answer=value,
        check=f"The identity holds: {first**2}/{third**2} + {second**2}/{third**2} = 1.",
    )


def distance_of_points(draw: Random) -> Exercise:
    """Finds a distance in the plane."""
    run, rise, distance = draw.choice(((3, 4, 5), (6, 8, 10), (5, 12, 13), (8, 6, 10), (4, 3, 5), (12, 5, 13)))
    x, y = draw.randint(-3, 5), draw.randint(-2, 6)
    points = f"({x}, {y}) and ({x + run}, {y + rise})"
    return Exercise(
        questions=(
            f"What is the distance between {points}?",
            f"How do I use the distance formula for {points}?",
            f"find distance from {points} pls with steps",
            f"The points are {points}. How far apart are they?",
        ),
        steps=(
            f"Find the differences: {x + run} - {_signed(x)} = {run} and {y + rise} - {_signed(y)} = {rise}.",
            f"Add their squares: {run}^2 + {rise}^2 = {distance**2}.",
            f"Take the square root: {distance} x {distance} = {distance**2}.",
        ),
        result=f"the distance is {distance}",
        answer=str(distance),
        check=f"Check the triangle: {distance}^2 - {rise}^2 = {run**2}.",
    )


def midpoint_of_segment(draw: Random) -> Exercise:
    """Finds the midpoint of a segment."""
    x, y = draw.randint(0, 6), draw.randint(0, 6)
    across, up = 2 * draw.randint(1, 5), 2 * draw.randint(1, 5)
    points = f"({x}, {y}) and ({x + across}, {y + up})"
    middle = x + across // 2, y + up // 2
    return Exercise(
        questions=(
            f"What is the midpoint of {points}?",
            f"How do I find the point halfway between {points}?",
            f"midpoint of {points}? show work",
            f"A segment goes from {points}. Where is its midpoint?",
        ),
        steps=(
            f"Average the x-coordinates: ({x} + {x + across}) ÷ 2 = {middle[0]}.",
            f"Average the y-coordinates: ({y} + {y + up}) ÷ 2 = {middle[1]}.",
        ),
        result=f"the midpoint is ({middle[0]}, {middle[1]})",
        answer=f"({middle[0]}, {middle[1]})",
        check=f"Both halves are equal: {middle[0]} - {x} = {x + across} - {middle[0]}.",
    )


def evaluate_function(draw: Random) -> Exercise:
    """Evaluates a quadratic function."""
    factor, term, value = draw.randint(2, 6), draw.randint(1, 9), draw.randint(2, 7)
    square = value * value
    total = square + factor * value - term
    return Exercise(
        questions=(
            f"If f(x) = x^2 + {factor}x - {term}, what is f({value})?",
            f"How do I evaluate f({value}) for f(x) = x^2 + {factor}x - {term}?",
            f"f(x) = x^2 + {factor}x - {term}. find f({value})",
            f"What does f({value}) mean if f(x) = x^2 + {factor}x - {term}, and what is its value?",
        ),
        steps=(
            f"Replace every x by {value}.",
            f"Evaluate the terms: {value}^2 = {square} and {factor} x {value} = {factor * value}.",
            f"Combine them: {square} + {factor * value} - {term} = {total}.",
        ),
        result=f"f({value}) = {total}",
        answer=str(total),
        check=f"In one line: {value}^2 + {factor} x {value} - {term} = {total}.",
    )


def count_choices(draw: Random) -> Exercise:
    """Counts pairs with a combination."""
    people = draw.randint(5, 12)
    ordered = people * (people - 1)
    thing = draw.choice(("students", "books", "players", "flavors"))
    return Exercise(
        questions=(
            f"How many ways are there to choose 2 of {people} {thing}?",
            f"How do I count the pairs that {people} {thing} can make?",
            f"choose 2 from {people} {thing}, how many combinations",
            f"Explain how many different pairs I can pick from {people} {thing}.",
        ),
        steps=(
            f"Count ordered choices first: {people} x {people - 1} = {ordered}.",
            f"Each pair was counted twice, so halve it: {ordered} ÷ 2 = {ordered // 2}.",
        ),
        result=f"there are {ordered // 2} pairs",
        answer=str(ordered // 2),
        check=f"Doubling gives the ordered choices: 2 x {ordered // 2} = {ordered}.",
    )


def _signed(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


_NINE, _TEN, _ELEVEN, _TWELVE = "9", "10", "11", "12"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.G9_12, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (factor_quadratic, Topic.ALGEBRA, (_NINE, _TEN), "HSA-REI.B.4"),
        (arithmetic_sequence, Topic.ALGEBRA, (_NINE, _ELEVEN), "HSF-BF.A.2"),
        (geometric_sequence, Topic.ALGEBRA, (_ELEVEN, _TWELVE), "HSF-BF.A.2"),
        (system_of_equations, Topic.ALGEBRA, (_NINE, _TEN), "HSA-REI.C.6"),
        (sine_of_triangle, Topic.SHAPES, (_TEN, _ELEVEN), "HSG-SRT.C.6"),
        (distance_of_points, Topic.SHAPES, (_TEN,), "HSG-GPE.B.7"),
        (midpoint_of_segment, Topic.SHAPES, (_TEN, _NINE), "HSG-GPE.B.6"),
        (evaluate_function, Topic.ALGEBRA, (_NINE, _TWELVE), "HSF-IF.A.2"),
        (count_choices, Topic.DATA, (_TEN, _TWELVE), "HSS-CP.B.9"),
    )
)
