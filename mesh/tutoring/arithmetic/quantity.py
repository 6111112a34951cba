"""Exact numbers with the units of school, and how a tutor writes them.

A table of units and `fractions.Fraction` are enough, and nothing here ever rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction
from types import MappingProxyType

# Larger numbers are not computed; no exercise of a school has them.
MAX_DIGITS = 15
_MAX_PARTS = 10**MAX_DIGITS
_MAX_EXPONENT = 100
# Longer decimal fractions are written as fractions.
_MAX_PLACES = 8


class NotComputable(ValueError):
    """An expression has no exact value here: units that do not fit, a division by zero, or a number too large."""


class Notation(Enum):
    """How a number that is not whole is written."""

    WHOLE = auto()
    DECIMAL = auto()
    FRACTION = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureUnit:
    """A unit of measurement: its symbol, what it measures, and its size in the smallest unit of that."""

    symbol: str
    dimension: str
    size: Fraction


_UNIT_ROWS: tuple[tuple[str, str, Fraction, str], ...] = (
    ("mm", "length", Fraction(1), "millimeter millimeters millimetre millimetres"),
    ("cm", "length", Fraction(10), "centimeter centimeters centimetre centimetres"),
    ("dm", "length", Fraction(100), "decimeter decimeters"),
    ("m", "length", Fraction(1000), "meter meters metre metres"),
    ("km", "length", Fraction(1_000_000), "kilometer kilometers kilometre kilometres"),
    ("in", "customary length", Fraction(1), "inch inches"),
    ("ft", "customary length", Fraction(12), "foot feet"),
    ("yd", "customary length", Fraction(36), "yard yards"),
    ("mi", "customary length", Fraction(63360), "mile miles"),
    ("mg", "mass", Fraction(1), "milligram milligrams"),
    ("g", "mass", Fraction(1000), "gram grams"),
    ("kg", "mass", Fraction(1_000_000), "kilogram kilograms kilo kilos"),
    ("oz", "weight", Fraction(1), "ounce ounces"),
    ("lb", "weight", Fraction(16), "lbs pound pounds"),
    ("ml", "volume", Fraction(1), "milliliter milliliters millilitre millilitres"),
    ("l", "volume", Fraction(1000), "liter liters litre litres"),
    ("fl oz", "customary volume", Fraction(1), ""),
    ("cups", "customary volume", Fraction(8), "cup"),
    ("pints", "customary volume", Fraction(16), "pint pt"),
    ("quarts", "customary volume", Fraction(32), "quart qt"),
    ("gallons", "customary volume", Fraction(128), "gallon gal"),
    ("s", "time", Fraction(1), "sec secs second seconds"),
    ("min", "time", Fraction(60), "mins minute minutes"),
    ("h", "time", Fraction(3600), "hr hrs hour hours"),
    ("days", "time", Fraction(86400), "day"),
    ("weeks", "time", Fraction(604800), "week"),
    ("cents", "money", Fraction(1), "cent ¢"),
    ("$", "money", Fraction(100), "dollar dollars"),
    ("€", "euro", Fraction(100), "euro euros"),
    ("£", "sterling", Fraction(100), ""),
    ("%", "percent", Fraction(1, 100), "percent"),
    ("degrees", "angle", Fraction(1), "degree °"),
)
PERCENT = "%"
UNITS: Mapping[str, MeasureUnit] = MappingProxyType(
    {
        word: MeasureUnit(symbol=symbol, dimension=dimension, size=size)
        for symbol, dimension, size, words in _UNIT_ROWS
        for word in (symbol, *words.split())
    }
)
# Written before the number.
_PREFIXES = frozenset({"$", "€", "£"})
_COMPOUND_TIME = ("h", "min", "s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """An exact number in a unit.

    Attributes:
        number: The number, in the unit.
        unit: The unit; None for a plain number.
        notation: How it is written.
    """

    number: Fraction
    unit: MeasureUnit | None = None
    notation: Notation = Notation.WHOLE

    @property
    def size(self) -> Fraction:
        """The number in the smallest unit of its dimension; of a percentage, the fraction."""
        return self.number * self.unit.size if self.unit else self.number

    def __neg__(self) -> "Quantity":
        return Quantity(number=-self.number, unit=self.unit, notation=self.notation)

    def __add__(self, other: "Quantity") -> "Quantity":
        return self._sum(other, sign=1)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return self._sum(other, sign=-1)

    def __mul__(self, other: "Quantity") -> "Quantity":
        first, second = self._as_factor(other), other._as_factor(self)
        if first.unit and second.unit:
            raise NotComputable("both factors have a unit")
        return _bounded(first.number * second.number, first.unit or second.unit, _wider(first, second))

    def __truediv__(self, other: "Quantity") -> "Quantity":
        if not other.number:
            raise NotComputable("divides by zero")
        if self.unit and other.unit and self.unit.dimension == other.unit.dimension:
            return _bounded(self.size / other.size, None, _wider(self, other))
        if other.unit:
            raise NotComputable("the divisor has a unit")
        return _bounded(self.number / other.number, self.unit, _wider(self, other))

    def __pow__(self, other: "Quantity") -> "Quantity":
        exponent = other.number
        if self.unit or other.unit or exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT:
            raise NotComputable("not a power of school")
        if not self.number and exponent < 0:
            raise NotComputable("divides by zero")
        parts = max(abs(self.number.numerator), self.number.denominator)
        if parts.bit_length() * abs(int(exponent)) > _MAX_PARTS.bit_length() + 4:
            raise NotComputable("too large")
        # 2^-4 is 1/16 rather than 0.0625.
        notation = Notation.FRACTION if exponent < 0 and self.notation is Notation.WHOLE else self.notation
        return _bounded(self.number ** int(exponent), None, notation)

    def in_unit(self, unit: MeasureUnit) -> "Quantity":
        """Returns the same quantity in another unit of its dimension."""
        return Quantity(number=self.size / unit.size, unit=unit, notation=self.notation)

    def _as_factor(self, other: "Quantity") -> "Quantity":
        """A percentage times anything is a share of it."""
        if self.unit and self.unit.symbol == PERCENT and (other.unit is None or other.unit.symbol != PERCENT):
            return Quantity(number=self.size, notation=Notation.WHOLE if other.unit is None else Notation.DECIMAL)
        return self

    def _sum(self, other: "Quantity", *, sign: int) -> "Quantity":
        if (self.unit and self.unit.dimension) != (other.unit and other.unit.dimension):
            raise NotComputable("the units do not fit")
        if not self.unit:
            return _bounded(self.number + sign * other.number, None, _wider(self, other))
        return _bounded((self.size + sign * other.size) / self.unit.size, self.unit, _wider(self, other))


def write_quantity(quantity: Quantity) -> str:
    """Returns a quantity as a tutor writes it, such as `3.2 km`, `2 h 15 min`, `$4.50` or `7/8`."""
    unit, number = quantity.unit, quantity.number
    if unit is None:
        return write_number(number, notation=quantity.notation)
    if unit.dimension == "time" and unit.symbol in _COMPOUND_TIME and number.denominator != 1 and number > 0:
        return _write_time(quantity)
    if unit.symbol in _PREFIXES:
        return _write_money(number, unit.symbol)
    notation = quantity.notation if quantity.notation is Notation.FRACTION else Notation.DECIMAL
    gap = "" if unit.symbol == PERCENT else " "
    return f"{write_number(number, notation=notation)}{gap}{unit.symbol}"


def write_number(number: Fraction, *, notation: Notation = Notation.WHOLE) -> str:
    """Returns a number exactly: whole, as a decimal fraction where one ends soon, else as a fraction."""
    if number.denominator == 1:
        return str(number.numerator)
    if notation is not Notation.FRACTION:
        decimal = _write_decimal(number)
        if decimal:
            return decimal
    return f"{number.numerator}/{number.denominator}"


def write_mixed(number: Fraction) -> str:
    """Returns a number as a whole and a fraction, such as `1 1/4`; one below 1 as a fraction alone."""
    whole, rest = divmod(abs(number), 1)
    if not whole or not rest:
        return write_number(number, notation=Notation.FRACTION)
    return f"{'-' if number < 0 else ''}{whole} {rest.numerator}/{rest.denominator}"


def _write_decimal(number: Fraction) -> str:
    """The decimal fraction; empty if it has no end within `_MAX_PLACES`."""
    scaled = abs(number) * 10**_MAX_PLACES
    if scaled.denominator != 1:
        return ""
    digits = f"{scaled.numerator:0{_MAX_PLACES + 1}d}"
    return f"{'-' if number < 0 else ''}{digits[:-_MAX_PLACES]}.{digits[-_MAX_PLACES:]}".rstrip("0").rstrip(".")


def _write_money(number: Fraction, symbol: str) -> str:
    amount, sign = abs(number), "-" if number < 0 else ""
    if amount.denominator == 1:
        return f"{sign}{symbol}{amount}"
    decimal = _write_decimal(amount)
    if not decimal:
        return f"{sign}{symbol}{amount.numerator}/{amount.denominator}"
    whole, _, cents = decimal.partition(".")
    return f"{sign}{symbol}{whole}.{cents:0<2}"


def _write_time(quantity: Quantity) -> str:
    rest, parts = quantity.size, []
    for symbol in _COMPOUND_TIME:
        size = UNITS[symbol].size
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {symbol}")
    if rest and quantity.unit:
        return f"{write_number(quantity.number, notation=Notation.DECIMAL)} {quantity.unit.symbol}"
    return " ".join(parts)


def _wider(first: Quantity, second: Quantity) -> Notation:
    """Fractions win, as they are exact; then decimals."""
    notations = {first.notation, second.notation}
    if Notation.FRACTION in notations:
        return Notation.FRACTION
    return Notation.DECIMAL if Notation.DECIMAL in notations else Notation.WHOLE


def _bounded(number: Fraction, unit: MeasureUnit | None, notation: Notation) -> Quantity:
    if max(abs(number.numerator), number.denominator) > _MAX_PARTS:
        raise NotComputable("too large")
    return Quantity(number=number, unit=unit, notation=notation)
