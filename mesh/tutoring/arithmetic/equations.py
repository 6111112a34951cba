"""Whether an equation holds, and what its sides are worth."""

from mesh.tutoring.arithmetic.chains import Chain
from mesh.tutoring.arithmetic.equality import is_same_quantity, lacks_unit, write_like
from mesh.tutoring.arithmetic.expression import Expression
from mesh.tutoring.arithmetic.quantity import Notation


def is_comparable(chain: Chain) -> bool:
    """Whether the sides are quantities of one kind; "1 inch = 2.54 cm" is no exact equation."""
    dimensions = {side.value.unit.dimension if side.value.unit else None for side in chain.sides}
    if all(side.is_literal for side in chain.sides):
        if all(side.value.notation is Notation.WHOLE for side in chain.sides):
            # "6 = 6", or "to the power 0 equal to 1": nothing is computed.
            return False
        return len(dimensions) == 1 or dimensions == {None, "percent"}
    return len(dimensions - {None, "percent"}) <= 1


def holds(chain: Chain) -> bool | None:
    """Whether all sides are equal; None if one is a rounded value."""
    first, *others = (chain.asks, *(side for side in chain.sides if side is not chain.asks))
    outcomes = [is_value(side, first, chain.remainder if side is chain.sides[-1] else None) for side in others]
    if False in outcomes:
        return False
    return None if None in outcomes else True


def is_value(offer: Expression, asks: Expression, remainder: int | None) -> bool | None:
    """Whether an offered number is the value of an expression; None if it is the value, rounded or without its unit."""
    if remainder is not None:
        number = asks.value.number
        expected = asks.remainder or ((int(number), 0) if number.denominator == 1 else None)
        return expected is not None and offer.value.number == expected[0] and remainder == expected[1]
    if is_same_quantity(offer.value, asks.value):
        return None if lacks_unit(offer.value, asks.value) else True
    places = len(offer.text.partition(".")[2])
    if places and asks.value.number.denominator != 1 and round(asks.value.number, places) == offer.value.number:
        return None
    return False


def results_of(chain: Chain) -> list[tuple[str, str]]:
    """What each side with something to compute is; of numbers alone, the first one in the notation of the second."""
    computed = [side for side in chain.sides if not side.is_literal]
    if computed:
        return [(side.text, side.described_result) for side in computed]
    first, second = chain.sides[:2]
    return [(first.text, write_like(first, second))]


def facts_of(chain: Chain) -> list[str]:
    """Returns a line per result of an equation."""
    return [
        f"{text} is {result}" if result.startswith("about") else f"{text} = {result}"
        for text, result in results_of(chain)
    ]
