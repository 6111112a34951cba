"""Templates for grades K-2: adding and taking away."""

from random import Random

from curriculum.mathematics.exercise import Exercise, Template, Topic, near
from mesh.tutoring.profile import GradeBand


def count_on(draw: Random) -> Exercise:
    """Adds by counting on from the larger number."""
    first, second = draw.randint(4, 9), draw.randint(2, 3)
    total = first + second
    path = ", ".join(str(first + step) for step in range(1, second + 1))
    return Exercise(
        expression=f"{first} + {second}",
        steps=(f"Start at {first}.", f"Count on {second} more: {path}."),
        result=f"{first} + {second} = {total}",
        answer=str(total),
        check=f"You can turn it around: {second} + {first} = {total}.",
        first_step=f"Put {first} in your head and count up {second} more.",
        thought=f"You can turn it around: {second} + {first} = {total}.",
        mistakes=near(total, first + second - 1),
    )


def make_ten(draw: Random) -> Exercise:
    """Adds through ten."""
    first = draw.randint(7, 9)
    second = draw.randint(10 - first + 1, 9)
    gap, rest = 10 - first, second - (10 - first)
    total = first + second
    return Exercise(
        expression=f"{first} + {second}",
        steps=(f"Make ten first: {first} + {gap} = 10.", f"You still have {rest} to add: 10 + {rest} = {total}."),
        result=f"{first} + {second} = {total}",
        answer=str(total),
        check=f"Take it away to check: {total} - {second} = {first}.",
        first_step=f"Make ten first: {first} + {gap} = 10.",
        thought=f"Making ten helps: {first} + {gap} + {rest} = {total}.",
        mistakes=near(total),
    )


def near_doubles(draw: Random) -> Exercise:
    """Adds two neighbours with a double."""
    first = draw.randint(3, 9)
    second, total, double = first + 1, 2 * first + 1, 2 * first
    return Exercise(
        expression=f"{first} + {second}",
        steps=(f"Use a double you know: {first} + {first} = {double}.", f"One more is {double} + 1 = {total}."),
        result=f"{first} + {second} = {total}",
        answer=str(total),
        check=f"Turn it around: {second} + {first} = {total}.",
        first_step=f"Use a double: {first} + {first} = {double}. You need one more.",
        thought=f"It is one more than the double {first} + {first} = {double}.",
        mistakes=near(total, double, double + 2),
    )


def count_back(draw: Random) -> Exercise:
    """Takes away by counting back."""
    first, second = draw.randint(7, 15), draw.randint(2, 3)
    rest = first - second
    path = ", ".join(str(first - step) for step in range(1, second + 1))
    return Exercise(
        expression=f"{first} - {second}",
        steps=(f"Start at {first}.", f"Count back {second}: {path}."),
        result=f"{first} - {second} = {rest}",
        answer=str(rest),
        check=f"Add to check: {rest} + {second} = {first}.",
        first_step=f"Start at {first} and count back {second} steps.",
        thought=f"Adding shows it too: {rest} + {second} = {first}.",
        mistakes=near(rest, rest + 1, first + second),
    )


def subtract_through_ten(draw: Random) -> Exercise:
    """Takes away through ten."""
    first = draw.randint(12, 16)
    ones = first - 10
    second = draw.randint(ones + 1, 9)
    rest, more = first - second, second - ones
    return Exercise(
        expression=f"{first} - {second}",
        steps=(f"Go down to ten: {first} - {ones} = 10.", f"Take away {more} more: 10 - {more} = {rest}."),
        result=f"{first} - {second} = {rest}",
        answer=str(rest),
        check=f"Add to check: {rest} + {second} = {first}.",
        first_step=f"Go down to ten: {first} - {ones} = 10. Then take away the rest.",
        thought=f"You can check with {rest} + {second} = {first}.",
        mistakes=near(rest),
    )


def add_tens(draw: Random) -> Exercise:
    """Adds whole tens."""
    first, second = draw.randint(2, 5), draw.randint(2, 4)
    total = first + second
    return Exercise(
        expression=f"{10 * first} + {10 * second}",
        steps=(f"Think of {first} tens and {second} tens.", f"Add the tens: {first} + {second} = {total}."),
        result=f"{10 * first} + {10 * second} = {10 * total}",
        answer=str(10 * total),
        check=f"Take away to check: {10 * total} - {10 * second} = {10 * first}.",
        first_step=f"Count the tens: {first} + {second} = {total}. Now say it as tens.",
        thought=f"It works like {first} + {second} = {total}, but with tens.",
        mistakes=near(10 * total, total, 10 * total - 10),
    )


def subtract_tens(draw: Random) -> Exercise:
    """Takes away whole tens."""
    first = draw.randint(5, 9)
    second = draw.randint(2, first - 2)
    rest = first - second
    return Exercise(
        expression=f"{10 * first} - {10 * second}",
        steps=(f"Think of {first} tens.", f"Take away {second} tens: {first} - {second} = {rest}."),
        result=f"{10 * first} - {10 * second} = {10 * rest}",
        answer=str(10 * rest),
        check=f"Add to check: {10 * rest} + {10 * second} = {10 * first}.",
        first_step=f"Take the tens away: {first} - {second} = {rest}. Now say it as tens.",
        thought=f"It works like {first} - {second} = {rest}, but with tens.",
        mistakes=near(10 * rest, rest, 10 * rest + 10),
    )


def add_tens_and_ones(draw: Random) -> Exercise:
    """Adds two-digit numbers without regrouping."""
    tens, ones, more_tens, more_ones = draw.randint(2, 4), draw.randint(1, 4), draw.randint(1, 4), draw.randint(1, 4)
    first, second = 10 * tens + ones, 10 * more_tens + more_ones
    total, ten_sum, one_sum = first + second, 10 * (tens + more_tens), ones + more_ones
    return Exercise(
        expression=f"{first} + {second}",
        steps=(
            f"Add the tens: {10 * tens} + {10 * more_tens} = {ten_sum}.",
            f"Add the ones: {ones} + {more_ones} = {one_sum}.",
            f"Put them together: {ten_sum} + {one_sum} = {total}.",
        ),
        result=f"{first} + {second} = {total}",
        answer=str(total),
        check=f"Take away to check: {total} - {second} = {first}.",
        first_step=f"Add the tens first: {10 * tens} + {10 * more_tens} = {ten_sum}. Then add the ones.",
        thought=f"Tens and ones fit together: {ten_sum} + {one_sum} = {total}.",
        mistakes=near(total, total - 10),
    )


def add_with_regrouping(draw: Random) -> Exercise:
    """Adds two-digit numbers whose ones make a ten."""
    ones = draw.randint(5, 9)
    others = draw.randint(11 - ones, 9)
    first, second = 10 * draw.randint(1, 5) + ones, 10 * draw.randint(1, 3) + others
    total, one_sum, ten_sum = first + second, ones + others, first - ones + second - others
    return Exercise(
        expression=f"{first} + {second}",
        steps=(
            f"Add the ones: {ones} + {others} = {one_sum}. That is a new ten.",
            f"Add the tens: {first - ones} + {second - others} = {ten_sum}.",
            f"Put them together: {ten_sum} + {one_sum} = {total}.",
        ),
        result=f"{first} + {second} = {total}",
        answer=str(total),
        check=f"Take away to check: {total} - {second} = {first}.",
        first_step=f"Add the ones first: {ones} + {others} = {one_sum}. They make a new ten.",
        thought=f"The ones make a new ten: {ones} + {others} = {one_sum}.",
        mistakes=near(total, total - 10),
    )


def subtract_with_regrouping(draw: Random) -> Exercise:
    """Takes away two-digit numbers where a ten must be opened."""
    ones = draw.randint(1, 5)
    others = draw.randint(ones + 1, 9)
    tens = draw.randint(4, 9)
    first, second = 10 * tens + ones, 10 * draw.randint(1, tens - 2) + others
    rest, middle = first - second, first - (second - others)
    return Exercise(
        expression=f"{first} - {second}",
        steps=(
            f"Take away the tens: {first} - {second - others} = {middle}.",
            f"Take away the ones: {middle} - {others} = {rest}.",
        ),
        result=f"{first} - {second} = {rest}",
        answer=str(rest),
        check=f"Add to check: {rest} + {second} = {first}.",
        first_step=f"Take away the tens first: {first} - {second - others} = {middle}. Then the ones.",
        thought=f"You can check with {rest} + {second} = {first}.",
        mistakes=near(rest, rest + 10, 10 * (tens - second // 10) + others - ones),
    )


_GRADE_K, _GRADE_1, _GRADE_2 = "K", "1", "2"
TEMPLATES = tuple(
    Template(build=build, topic=topic, band=GradeBand.K_2, grades=grades, standard=standard)
    for build, topic, grades, standard in (
        (count_on, Topic.ADDING, (_GRADE_K, _GRADE_1), "1.OA.C.5"),
        (make_ten, Topic.ADDING, (_GRADE_1, _GRADE_2), "1.OA.C.6"),
        (near_doubles, Topic.ADDING, (_GRADE_1, _GRADE_2), "1.OA.C.6"),
        (count_back, Topic.TAKING_AWAY, (_GRADE_K, _GRADE_1), "1.OA.C.5"),
        (subtract_through_ten, Topic.TAKING_AWAY, (_GRADE_1, _GRADE_2), "1.OA.C.6"),
        (add_tens, Topic.ADDING, (_GRADE_1, _GRADE_2), "1.NBT.C.4"),
        (subtract_tens, Topic.TAKING_AWAY, (_GRADE_1, _GRADE_2), "1.NBT.C.6"),
        (add_tens_and_ones, Topic.ADDING, (_GRADE_2, _GRADE_1), "2.NBT.B.5"),
        (add_with_regrouping, Topic.ADDING, (_GRADE_2,), "2.NBT.B.5"),
        (subtract_with_regrouping, Topic.TAKING_AWAY, (_GRADE_2,), "2.NBT.B.5"),
    )
)
