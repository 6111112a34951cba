"""Templates for grades 6-8: equations, data and shapes."""

from fractions import Fraction
from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic
from mesh.tutoring.profile import GradeBand


def two_step_equation(draw: Random) -> Exercise:
    """Solves a linear equation in two steps."""
    factor, root, term = draw.randint(2, 9), draw.randint(2, 12), draw.randint(1, 15)
    total = factor * root + term
    return Exercise(
        questions=(
            f"Solve {factor}x + {term} = {total}.",
            f"How do I solve {factor}x + {term} = {total} for x?",
            f"what is x in {factor}x + {term} = {total}",
            f"I don't know how to start {factor}x + {term} = {total}. Can you show me the steps?",
        ),
        steps=(
            f"Subtract {term} from both sides: {total} - {term} = {total - term}, so {factor}x = {total - term}.",
            f"Divide both sides by {factor}: {total - term} ÷ {factor} = {root}.",
        ),
        result=f"x = {root}",
        answer=str(root),
        check=f"Put it back in: {factor} x {root} + {term} = {total}.",
    )


def _numbers(draw: Random, count: int) -> list[int]:
    return [draw.randint(2, 20) for _ in range(count)]


def mean_of_data(draw: Random) -> Exercise:
    """Finds a mean that is whole."""
    data = _numbers(draw, 4)
    rest = -sum(data) % 5
    data.append(rest + 5 * draw.randint(1, 3))
    total = sum(data)
    listed_data = ", ".join(map(str, data))
    return Exercise(
        questions=(
            f"What is the mean of {listed_data}?",
            f"How do I find the average of {listed_data}?",
            f"my scores are {listed_data}. whats the mean",
            f"Please show me the steps for the mean of {listed_data}.",
        ),
        steps=(
            f"Add all values: {' + '.join(map(str, data))} = {total}.",
            f"Divide by how many there are: {total} ÷ 5 = {total // 5}.",
        ),
        result=f"the mean is {total // 5}",
        answer=str(total // 5),
        check=f"Five values of that size make the same sum: 5 x {total // 5} = {total}.",
    )


def median_of_data(draw: Random) -> Exercise:
    """Finds the middle of sorted data."""
    data = draw.sample(range(2, 30), 5)
    ordered = sorted(data)
    listed_data, row = ", ".join(map(str, data)), ", ".join(map(str, ordered))
    return Exercise(
        questions=(
            f"What is the median of {listed_data}?",
            f"How do I find the median of {listed_data}?",
            f"i need the middle number of {listed_data} but idk how",
            f"Explain the median with the data {listed_data}.",
        ),
        steps=(
            f"Put the values in order: {row}.",
            "There are five values, so the third one is in the middle.",
        ),
        result=f"the median is {ordered[2]}",
        answer=str(ordered[2]),
        check="Two values lie below it and two lie above it.",
    )


def area_of_triangle(draw: Random) -> Exercise:
    """Halves base times height."""
    base, height = 2 * draw.randint(2, 8), draw.randint(3, 12)
    unit = draw.choice(("cm", "meters", "inches"))
    return Exercise(
        questions=(
            f"What is the area of a triangle with base {base} {unit} and height {height} {unit}?",
            f"How do I find the area of a triangle if the base is {base} {unit} and the height is {height} {unit}?",
            f"area of a triangle {base} {unit} wide and {height} {unit} high pls",
            f"A triangle has a base of {base} {unit} and a height of {height} {unit}. I need its area.",
        ),
        steps=(
            f"A rectangle around it has the area {base} x {height} = {base * height}.",
            f"The triangle fills half of that: {base * height} ÷ 2 = {base * height // 2}.",
        ),
        result=f"the area is {base * height // 2} square {unit}",
        answer=str(base * height // 2),
        check=f"Double it to check: 2 x {base * height // 2} = {base * height}.",
    )


def probability_of_draw(draw: Random) -> Exercise:
    """Finds the probability of a color."""
    matching, others = draw.randint(2, 7), draw.randint(3, 9)
    total = matching + others
    color = draw.choice(("red", "blue", "green"))
    chance = Fraction(matching, total)
    written = f"{chance.numerator}/{chance.denominator}"
    simplify = () if chance.denominator == total else (f"Simplify: {matching}/{total} = {written}.",)
    return Exercise(
        questions=(
            f"A bag has {matching} {color} and {others} white marbles. What is the probability of drawing {color}?",
            f"How do I find the chance of {color} with {matching} {color} and {others} white marbles?",
            f"{matching} {color} marbles and {others} white ones in a bag. probability of {color}?",
            f"I pick a marble from {matching} {color} and {others} white. How likely is {color}?",
        ),
        steps=(
            f"Count all marbles: {matching} + {others} = {total}.",
            f"{matching} of the {total} are {color}, so write {matching}/{total}.",
            *simplify,
        ),
        result=f"the probability is {written}",
        answer=written,
        check=f"The other color has the rest: 1 - {written} = {(1 - chance).numerator}/{(1 - chance).denominator}.",
    )


def pythagoras(draw: Random) -> Exercise:
    """Finds a hypotenuse."""
    first, second, third = draw.choice(
        ((3, 4, 5), (5, 12, 13), (6, 8, 10), (8, 15, 17), (9, 12, 15), (7, 24, 25), (20, 21, 29))
    )
    unit = draw.choice(("cm", "m", "ft"))
    return Exercise(
        questions=(
            f"The legs of a right triangle are {first} {unit} and {second} {unit}. How long is the hypotenuse?",
            f"How do I find the hypotenuse if the legs are {first} {unit} and {second} {unit}?",
            f"right triangle, legs {first} and {second}, whats the long side in {unit}",
            f"Show me the Pythagorean theorem with legs of {first} {unit} and {second} {unit}.",
        ),
        steps=(
            f"Square both legs: {first}^2 = {first**2} and {second}^2 = {second**2}.",
            f"Add the squares: {first**2} + {second**2} = {third**2}.",
            f"Take the square root: {third} x {third} = {third**2}, so the root is {third}.",
        ),
        result=f"the hypotenuse is {third} {unit}",
        answer=str(third),
        check=f"Check: {third}^2 - {second}^2 = {first**2}.",
    )


def slope_of_line(draw: Random) -> Exercise:
    """Finds the slope through two points."""
    x, y, run, slope = draw.randint(0, 5), draw.randint(0, 6), draw.randint(2, 5), draw.randint(2, 5)
    rise = slope * run
    points = f"({x}, {y}) and ({x + run}, {y + rise})"
    return Exercise(
        questions=(
            f"What is the slope of the line through {points}?",
            f"How do I get the slope from the points {points}?",
            f"find the slope pls, points are {points}",
            f"A line goes through {points}. How steep is it?",
        ),
        steps=(
            f"Find the rise: {y + rise} - {y} = {rise}.",
            f"Find the run: {x + run} - {x} = {run}.",
            f"Divide rise by run: {rise} ÷ {run} = {slope}.",
        ),
        result=f"the slope is {slope}",
        answer=str(slope),
        check=f"Each step to the right goes up {slope}: {run} x {slope} = {rise}.",
    )


def angles_of_triangle(draw: Random) -> Exercise:
    """Finds the third angle of a triangle."""
    first, second = 5 * draw.randint(6, 16), 5 * draw.randint(5, 14)
    both = first + second
    return Exercise(
        questions=(
            f"Two angles of a triangle are {first} and {second} degrees. What is the third?",
            f"How do I find the third angle of a triangle with angles of {first} and {second} degrees?",
            f"triangle with {first} degrees and {second} degrees, whats the last angle",
            f"A triangle has angles of {first} and {second} degrees. I need the missing one.",
        ),
        steps=(
            "The angles of a triangle add up to 180 degrees.",
            f"Add the two that you know: {first} + {second} = {both}.",
            f"Subtract from the whole: 180 - {both} = {180 - both}.",
        ),
        result=f"the third angle is {180 - both} degrees",
        answer=str(180 - both),
        check=f"Add all three to check: {first} + {second} + {180 - both} = 180.",
    )


_SIX, _SEVEN, _EIGHT = "6", "7", "8"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.G6_8, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (two_step_equation, Topic.ALGEBRA, (_SEVEN, _EIGHT), "7.EE.B.4"),
        (mean_of_data, Topic.DATA, (_SIX,), "6.SP.B.5"),
        (median_of_data, Topic.DATA, (_SIX,), "6.SP.B.5"),
        (area_of_triangle, Topic.SHAPES, (_SIX,), "6.G.A.1"),
        (probability_of_draw, Topic.DATA, (_SEVEN,), "7.SP.C.5"),
        (pythagoras, Topic.SHAPES, (_EIGHT,), "8.G.B.7"),
        (slope_of_line, Topic.ALGEBRA, (_EIGHT,), "8.F.B.4"),
        (angles_of_triangle, Topic.SHAPES, (_EIGHT, _SEVEN), "8.G.A.5"),
    )
)
