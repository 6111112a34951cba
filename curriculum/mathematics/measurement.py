"""Templates for grades 3-5: measures and shapes."""

from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic
from mesh.tutoring.profile import GradeBand


def add_times(draw: Random) -> Exercise:
    """Adds hours and minutes."""
    hours, more_hours = draw.randint(1, 3), draw.randint(1, 2)
    minutes = 5 * draw.randint(7, 11)
    more_minutes = 5 * draw.randint(6, 11)
    minute_sum = minutes + more_minutes
    rest, hour_sum = minute_sum - 60, hours + more_hours
    total = f"{hour_sum + 1} h {rest} min"
    return Exercise(
        expression=f"{hours} h {minutes} min + {more_hours} h {more_minutes} min",
        steps=(
            f"Add the minutes: {minutes} + {more_minutes} = {minute_sum}.",
            f"60 minutes make an hour, and {minute_sum} - 60 = {rest}.",
            f"Add the hours and the new one: {hours} + {more_hours} + 1 = {hour_sum + 1}.",
        ),
        result=f"the total is {total}",
        answer=total,
        check=f"In minutes: {60 * hours + minutes} + {60 * more_hours + more_minutes} = {60 * hour_sum + minute_sum}.",
        first_step=f"Add the minutes: {minutes} + {more_minutes} = {minute_sum}. That is more than an hour.",
        thought=f"The minutes make more than an hour: {minutes} + {more_minutes} = {minute_sum}.",
        mistakes=(
            f"{hour_sum} h {rest + 5} min",
            f"{hour_sum + 2} h {rest + 10} min",
            f"{hour_sum + 1} h {rest + 40} min",
        ),
    )


def area_of_rectangle(draw: Random) -> Exercise:
    """Multiplies the sides of a rectangle."""
    length, width = draw.randint(5, 12), draw.randint(2, 9)
    unit = draw.choice(("cm", "meters", "feet", "inches"))
    thing = draw.choice(("rectangle", "garden", "rug", "poster"))
    return Exercise(
        questions=(
            f"What is the area of a {thing} that is {length} {unit} long and {width} {unit} wide?",
            f"A {thing} is {length} {unit} by {width} {unit}. How do I find the area?",
            f"how do u get the area of a {length} by {width} {thing} in {unit}",
            f"I need the area of my {thing}. The sides are {length} {unit} and {width} {unit}.",
        ),
        steps=(
            "Area counts the squares that cover the shape.",
            f"There are {width} rows with {length} squares in each row.",
            f"Multiply: {length} x {width} = {length * width}.",
        ),
        result=f"the area is {length * width} square {unit}",
        answer=str(length * width),
        check=f"Check with division: {length * width} ÷ {width} = {length}.",
    )


def perimeter_of_rectangle(draw: Random) -> Exercise:
    """Adds the sides of a rectangle."""
    length, width = draw.randint(6, 15), draw.randint(2, 9)
    unit = draw.choice(("cm", "meters", "feet", "yards"))
    half = length + width
    thing = draw.choice(("rectangle", "yard", "picture frame", "table"))
    return Exercise(
        questions=(
            f"What is the perimeter of a {thing} that is {length} {unit} by {width} {unit}?",
            f"How far is it around a {thing} with sides of {length} {unit} and {width} {unit}?",
            f"how do i find the perimeter if the {thing} is {length} {unit} long and {width} {unit} wide",
            f"A {thing} is {length} {unit} long and {width} {unit} wide. I need the distance around it.",
        ),
        steps=(
            "The perimeter is the distance all the way around.",
            f"Add one long side and one short side: {length} + {width} = {half}.",
            f"There are two of each, so double it: 2 x {half} = {2 * half}.",
        ),
        result=f"the perimeter is {2 * half} {unit}",
        answer=str(2 * half),
        check=f"Add all four sides to check: {length} + {width} + {length} + {width} = {2 * half}.",
    )


def volume_of_box(draw: Random) -> Exercise:
    """Multiplies the edges of a box."""
    length, width, height = draw.randint(3, 9), draw.randint(2, 6), draw.randint(2, 6)
    layer = length * width
    unit, one_unit = draw.choice((("cm", "1 cm"), ("inches", "1 inch"), ("feet", "1 foot")))
    return Exercise(
        questions=(
            f"What is the volume of a box that is {length} {unit} by {width} {unit} by {height} {unit}?",
            f"A box is {length} {unit} long, {width} {unit} wide and {height} {unit} high. How do I find its volume?",
            f"how many {one_unit} cubes fit in a box of {length} by {width} by {height}",
            f"Please explain the volume of a box with edges {length}, {width} and {height} {unit}.",
        ),
        steps=(
            f"Count the cubes in the bottom layer: {length} x {width} = {layer}.",
            f"There are {height} layers, so {layer} x {height} = {layer * height}.",
        ),
        result=f"the volume is {layer * height} cubic {unit}",
        answer=str(layer * height),
        check=f"Check with division: {layer * height} ÷ {height} = {layer}.",
    )


def convert_to_smaller_units(draw: Random) -> Exercise:
    """Converts a measure to a smaller unit."""
    large, one_large, small, size = draw.choice(
        (("kilometers", "One kilometer", "meters", 1000), ("meters", "One meter", "centimeters", 100),
         ("feet", "One foot", "inches", 12), ("hours", "One hour", "minutes", 60),
         ("kilograms", "One kilogram", "grams", 1000), ("pounds", "One pound", "ounces", 16))
    )  # fmt: skip
    count = draw.randint(2, 9)
    return Exercise(
        questions=(
            f"How many {small} are in {count} {large}?",
            f"How do I change {count} {large} to {small}?",
            f"i need {count} {large} in {small} how do i do it",
            f"My problem says {count} {large}. What is that in {small}?",
        ),
        steps=(
            f"{one_large} is the same as {size} {small}.",
            f"You have {count} of them, so multiply: {count} x {size} = {count * size}.",
        ),
        result=f"{count} {large} are {count * size} {small}",
        answer=str(count * size),
        check=f"Divide to check: {count * size} ÷ {size} = {count}.",
    )


def missing_angle(draw: Random) -> Exercise:
    """Finds the other part of a right or straight angle."""
    whole, name = draw.choice(((90, "right"), (180, "straight")))
    part = 5 * draw.randint(3, whole // 5 - 3)
    return Exercise(
        questions=(
            f"Two angles make a {name} angle. One is {part} degrees. How big is the other?",
            f"A {name} angle is cut in two. One part is {part} degrees. What is the missing angle?",
            f"how do i find the missing angle if one is {part} degrees and together they are {whole}",
            f"My {name} angle has a part of {part} degrees. I need the rest.",
        ),
        steps=(
            f"A {name} angle has {whole} degrees.",
            f"Subtract the part that you know: {whole} - {part} = {whole - part}.",
        ),
        result=f"the other angle is {whole - part} degrees",
        answer=str(whole - part),
        check=f"Add to check: {part} + {whole - part} = {whole}.",
    )


_THREE, _FOUR, _FIVE = "3", "4", "5"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.G3_5, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (add_times, Topic.ADDING, (_FOUR, _FIVE), "4.MD.A.2"),
        (area_of_rectangle, Topic.SHAPES, (_THREE, _FOUR), "3.MD.C.7"),
        (perimeter_of_rectangle, Topic.SHAPES, (_THREE, _FOUR), "3.MD.D.8"),
        (volume_of_box, Topic.SHAPES, (_FIVE,), "5.MD.C.5"),
        (convert_to_smaller_units, Topic.GROUPS, (_FOUR, _FIVE), "4.MD.A.1"),
        (missing_angle, Topic.SHAPES, (_FOUR, _FIVE), "4.MD.C.7"),
    )
)
