"""Templates for grades K-2: rows, coins and stories."""

from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic
from mesh.tutoring.profile import GradeBand


def count_by_steps(draw: Random) -> Exercise:
    """Continues a row of numbers."""
    step = draw.choice((2, 5, 10))
    start = step * draw.randint(1, 5)
    row = [start + step * index for index in range(4)]
    listed_row = ", ".join(map(str, row))
    return Exercise(
        questions=(
            f"What comes next: {listed_row}?",
            f"How do I find the next number in {listed_row}?",
            f"i have to keep counting {listed_row} and then what",
            f"My sheet says {listed_row}, and then a blank. Help!",
            f"Can you show me how {listed_row} goes on?",
        ),
        steps=(
            f"Look at the jump: {row[1]} - {row[0]} = {step}.",
            f"Each jump is {step}.",
            f"Jump once more: {row[3]} + {step} = {row[3] + step}.",
        ),
        result=f"the next number is {row[3] + step}",
        answer=str(row[3] + step),
        check=f"Jump back to check: {row[3] + step} - {step} = {row[3]}.",
    )


def rows_of_dots(draw: Random) -> Exercise:
    """Counts an array by adding its rows."""
    rows, dots = draw.randint(2, 4), draw.randint(3, 5)
    total, thing = rows * dots, draw.choice(("dots", "stars", "eggs", "chairs", "plants"))
    added = " + ".join([str(dots)] * rows)
    return Exercise(
        questions=(
            f"There are {rows} rows of {dots} {thing}. How many {thing} are there?",
            f"How many {thing} are in {rows} rows with {dots} in each row?",
            f"i see {rows} rows and each row has {dots} {thing} how many in all",
            f"How do I count {rows} rows of {dots} {thing} fast?",
        ),
        steps=(f"Each row has {dots} {thing}.", f"Add the rows: {added} = {total}."),
        result=f"there are {total} {thing}",
        answer=str(total),
        check=f"You can also say {rows} x {dots} = {total}.",
    )


def count_coins(draw: Random) -> Exercise:
    """Counts dimes and pennies."""
    dimes, pennies = draw.randint(2, 7), draw.randint(2, 9)
    total = 10 * dimes + pennies
    return Exercise(
        questions=(
            f"I have {dimes} dimes and {pennies} pennies. How many cents is that?",
            f"How much money is {dimes} dimes and {pennies} pennies?",
            f"how do i count {dimes} dimes and {pennies} pennies",
            f"What is the value of {dimes} dimes and {pennies} pennies?",
        ),
        steps=(
            f"A dime is 10 cents, so {dimes} x 10 = {10 * dimes}.",
            f"Add the pennies: {10 * dimes} + {pennies} = {total}.",
        ),
        result=f"you have {total} cents",
        answer=str(total),
        check=f"Take the pennies away to check: {total} - {pennies} = {10 * dimes}.",
    )


def story_of_more(draw: Random) -> Exercise:
    """Solves a story in which more come."""
    first, second = draw.randint(5, 9), draw.randint(3, 8)
    total, thing = first + second, draw.choice(("apples", "shells", "books", "cards", "beads"))
    return Exercise(
        questions=(
            f"Mia has {first} {thing}. She gets {second} more. How many {thing} does she have now?",
            f"There are {first} {thing} in a box and {second} go in. How do I find how many are in it?",
            f"i had {first} {thing} and my friend gave me {second} more how many now",
            f"A bag has {first} {thing}. We put {second} more in. What do I do?",
        ),
        steps=("More come, so we add.", f"Add the two numbers: {first} + {second} = {total}."),
        result=f"there are {total} {thing} now",
        answer=str(total),
        check=f"Take away to check: {total} - {second} = {first}.",
    )


def how_many_more(draw: Random) -> Exercise:
    """Compares two numbers."""
    low, gap = draw.randint(4, 9), draw.randint(3, 6)
    high, thing = low + gap, draw.choice(("stickers", "marbles", "pens", "points", "leaves"))
    return Exercise(
        questions=(
            f"Leo has {high} {thing} and Ana has {low}. How many more does Leo have?",
            f"How many more is {high} {thing} than {low} {thing}?",
            f"i have {low} {thing} and my sister has {high} how many more has she",
            f"One jar has {high} {thing} and one has {low}. How do I find how many more?",
        ),
        steps=("We want to know how far apart they are.", f"Take the small number away: {high} - {low} = {gap}."),
        result=f"it is {gap} more",
        answer=str(gap),
        check=f"Add to check: {low} + {gap} = {high}.",
    )


_GRADE_K, _GRADE_1, _GRADE_2 = "K", "1", "2"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.K_2, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (count_by_steps, Topic.ADDING, (_GRADE_2, _GRADE_1), "2.NBT.A.2"),
        (rows_of_dots, Topic.GROUPS, (_GRADE_2,), "2.OA.C.4"),
        (count_coins, Topic.GROUPS, (_GRADE_2,), "2.MD.C.8"),
        (story_of_more, Topic.ADDING, (_GRADE_K, _GRADE_1), "1.OA.A.1"),
        (how_many_more, Topic.TAKING_AWAY, (_GRADE_1, _GRADE_2), "1.OA.A.1"),
    )
)
