"""Evaluates an expression of school exactly, and writes it as a tutor does.

Python's own grammar gives precedence and brackets: the tokens become a Python expression whose operands are names, and
its syntax tree is evaluated over `Quantity`. Nothing of the text itself is ever parsed or run as Python.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from mesh.tutoring.arithmetic.quantity import (
    PERCENT,
    UNITS,
    Notation,
    NotComputable,
    Quantity,
    write_mixed,
    write_quantity,
)
from mesh.tutoring.arithmetic.tokens import Token, TokenKind

MAX_TOKENS = 48
_BEFORE_NUMBER = frozenset({"$", "€", "£"})
_SYMBOLS: Mapping[str, str] = MappingProxyType(
    {"+": "+", "-": "-", "x": "*", "of": "*", "÷": "/", "/": "/", ":": "/", "^": "**", "(": "(", ")": ")"}
)
_OPERATIONS: Mapping[type[ast.operator], Callable[[Quantity, Quantity], Quantity]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.Pow: operator.pow,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """An evaluated expression.

    Attributes:
        text: The expression as a tutor writes it, such as `3/4 + 1/8`.
        value: Its exact value.
        operators: Its operators in order; empty for a number alone.
        remainder: Quotient and remainder of a division of whole numbers that leaves one.
    """

    text: str
    value: Quantity
    operators: tuple[str, ...] = ()
    remainder: tuple[int, int] | None = None

    @property
    def is_literal(self) -> bool:
        """Whether it is a number alone."""
        return not self.operators

    @property
    def result(self) -> str:
        """The value as a tutor writes it first."""
        value = self.value
        # Whole numbers that do not divide evenly: a fraction is exact, and what lessons before decimals can say.
        if value.unit is None and value.notation is Notation.WHOLE and value.number.denominator != 1:
            return write_quantity(value) if "/" not in write_quantity(value) else write_mixed(value.number)
        return write_quantity(value)

    @property
    def answers(self) -> tuple[str, ...]:
        """The value as a number, and as quotient and remainder if there is one."""
        if self.remainder:
            return self.result, f"{self.remainder[0]} remainder {self.remainder[1]}"
        return (self.result,)

    @property
    def described_result(self) -> str:
        """The value in the ways that a student may write it, such as `5/4 = 1 1/4` or `3.4 (3 remainder 2)`."""
        value = self.value
        if self.remainder:
            return f"{self.answers[0]} ({self.answers[1]})"
        if value.unit is None and value.notation is Notation.FRACTION and value.number.denominator != 1:
            mixed = write_mixed(value.number)
            return self.result if mixed == self.result else f"{self.result} = {mixed}"
        return self.result


def parse_expression(tokens: Sequence[Token]) -> Expression:
    """Returns the value of the tokens of one side of an equation.

    Raises:
        NotComputable: They are no whole expression, or have no exact value of a usual size.
    """
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise NotComputable("empty or too long")
    parts = _parts_of(tokens)
    operands = [part for part in parts if isinstance(part, Expression)]
    operators = tuple(part for part in parts if isinstance(part, str) and part not in "()")
    if len(operands) == 1 and (not operators or (parts[0] == "-" and len(parts) == 2)):
        value = operands[0].value if not operators else -operands[0].value
        return Expression(text=("-" if operators else "") + operands[0].text, value=value)
    value = _evaluate(parts, [operand.value for operand in operands])
    return Expression(text=_write(parts), value=value, operators=operators, remainder=_remainder(operators, operands))


def _remainder(operators: Sequence[str], operands: Sequence[Expression]) -> tuple[int, int] | None:
    if len(operands) != 2 or operators not in {("÷",), ("/",), (":",)}:
        return None
    dividend, divisor = operands[0].value, operands[1].value
    plain = all(
        part.unit is None and part.notation is Notation.WHOLE and part.number.denominator == 1 and part.number > 0
        for part in (dividend, divisor)
    )
    if not plain or dividend.number < divisor.number or dividend.number % divisor.number == 0:
        return None
    quotient, rest = divmod(int(dividend.number), int(divisor.number))
    return quotient, rest


def _parts_of(tokens: Sequence[Token]) -> list["Expression | str"]:
    """Returns operands and operators: joins fractions, mixed numbers and units with their numbers."""
    parts: list[Expression | str] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if token.kind is TokenKind.OPERATOR:
            if token.text == "of" and not _is_share(parts):
                raise NotComputable("only a share is taken of something")
            parts.append(token.text)
            index += 1
        elif token.kind in {TokenKind.OPEN, TokenKind.CLOSE}:
            if token.kind is TokenKind.OPEN and parts and (isinstance(parts[-1], Expression) or parts[-1] == ")"):
                if {"/", "÷", ":"} & {part for part in parts if isinstance(part, str)}:
                    raise NotComputable("ambiguous without a sign of multiplication")
                parts.append("x")
            parts.append(token.text)
            index += 1
        else:
            operand, index = _operand(tokens, index, after_power=bool(parts) and parts[-1] == "^")
            if parts and (isinstance(parts[-1], Expression) or parts[-1] == ")"):
                raise NotComputable("two numbers without an operator")
            parts.append(operand)
    return parts


def _is_share(parts: Sequence["Expression | str"]) -> bool:
    """Whether the last part is a fraction or a percentage: "25% of 80", and not "base 2 of 8"."""
    last = parts[-1] if parts else ""
    if not isinstance(last, Expression):
        return False
    unit = last.value.unit
    return unit.symbol == PERCENT if unit else last.value.notation is Notation.FRACTION


def _operand(tokens: Sequence[Token], index: int, *, after_power: bool) -> tuple[Expression, int]:
    """Reads one operand, with its unit; times and lengths may have several parts, such as `2 h 15 min`."""
    if tokens[index].kind is TokenKind.UNIT and tokens[index].text in _BEFORE_NUMBER and index + 1 < len(tokens):
        number, text, end = _plain_number(tokens, index + 1, after_power=False)
        value = Quantity(number=number.number, unit=UNITS[tokens[index].text], notation=Notation.DECIMAL)
        return Expression(text=f"{tokens[index].text}{text}", value=value), end
    number, text, end = _plain_number(tokens, index, after_power=after_power)
    if end == len(tokens) or tokens[end].kind is not TokenKind.UNIT or tokens[end].text in _BEFORE_NUMBER:
        return Expression(text=text, value=number), end
    unit = UNITS[tokens[end].text]
    notation = Notation.FRACTION if number.notation is Notation.FRACTION else Notation.DECIMAL
    value = Quantity(number=number.number, unit=unit, notation=notation)
    text = f"{text}{unit.symbol}" if unit.symbol == PERCENT else f"{text} {unit.symbol}"
    end += 1
    while end + 1 < len(tokens) and tokens[end].kind is TokenKind.NUMBER and tokens[end + 1].kind is TokenKind.UNIT:
        smaller = UNITS.get(tokens[end + 1].text)
        if not smaller or smaller.dimension != unit.dimension or smaller.size >= unit.size:
            raise NotComputable("two quantities without an operator")
        value = value + Quantity(number=tokens[end].number, unit=smaller, notation=Notation.DECIMAL)
        text, unit, end = f"{text} {tokens[end].text} {smaller.symbol}", smaller, end + 2
    return Expression(text=text, value=value), end


def _plain_number(tokens: Sequence[Token], index: int, *, after_power: bool) -> tuple[Quantity, str, int]:
    """Reads a number without its unit: whole, decimal, a fraction such as `3/4`, or mixed, such as `1 1/2`."""
    token = tokens[index]
    if token.kind is not TokenKind.NUMBER:
        raise NotComputable("a unit without a number")
    whole = token.number.denominator == 1 and not token.is_decimal and not token.is_spoken
    if whole and not after_power:
        denominator = _denominator(tokens, index)
        if denominator:
            fraction = token.number / denominator
            return (
                Quantity(number=fraction, notation=Notation.FRACTION), f"{token.text}/{denominator}", index + 3
            )  # fmt: skip
        mixed = _mixed_part(tokens, index + 1)
        if mixed:
            fraction, text, end = mixed
            value = Quantity(number=token.number + fraction, notation=Notation.FRACTION)
            return value, f"{token.text} {text}", end
    notation = Notation.DECIMAL if token.is_decimal else Notation.WHOLE
    if not token.is_decimal and token.number.denominator != 1:
        notation = Notation.FRACTION
    return Quantity(number=token.number, notation=notation), token.text, index + 1


def _mixed_part(tokens: Sequence[Token], index: int) -> tuple[Fraction, str, int] | None:
    """The proper fraction after a whole number."""
    if index >= len(tokens) or tokens[index].kind is not TokenKind.NUMBER:
        return None
    token = tokens[index]
    if not token.is_decimal and not token.is_spoken and token.number.denominator != 1:
        return token.number, token.text, index + 1
    denominator = _denominator(tokens, index)
    if not denominator or not 0 < token.number < denominator:
        return None
    return token.number / denominator, f"{token.text}/{denominator}", index + 3


def _denominator(tokens: Sequence[Token], index: int) -> int | None:
    """The denominator, if a fraction without blank space begins here; None also if a power follows it."""
    if index + 2 >= len(tokens):
        return None
    numerator, slash, number = tokens[index : index + 3]
    tight = slash.text == "/" and slash.start == numerator.end and slash.end == number.start
    if not tight or number.kind is not TokenKind.NUMBER or number.number.denominator != 1 or number.is_decimal:
        return None
    if numerator.is_decimal or not number.number or (index + 3 < len(tokens) and tokens[index + 3].text == "^"):
        return None
    return int(number.number)


def _write(parts: Sequence["Expression | str"]) -> str:
    written = ""
    for index, part in enumerate(parts):
        if isinstance(part, Expression):
            written += part.text
        elif part in "()^" or (part == "-" and _is_sign(parts, index)):
            written += part
        else:
            written += f" {'÷' if part in '/:' else part} "
    return written


def _is_sign(parts: Sequence["Expression | str"], index: int) -> bool:
    """Whether a minus makes a number negative, rather than subtracting it."""
    return index == 0 or (isinstance(parts[index - 1], str) and parts[index - 1] != ")")


def _evaluate(parts: Sequence["Expression | str"], operands: Sequence[Quantity]) -> Quantity:
    names = iter(range(len(operands)))
    source = " ".join(f"_{next(names)}" if isinstance(part, Expression) else _SYMBOLS[part] for part in parts)
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, RecursionError, MemoryError):
        raise NotComputable("not a whole expression") from None
    return _value_of(tree.body, operands)


def _value_of(node: ast.expr, operands: Sequence[Quantity]) -> Quantity:
    match node:
        case ast.Name(id=name):
            return operands[int(name[1:])]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value_of(inner, operands)
        case ast.BinOp(left=first, op=operation, right=second):
            return _OPERATIONS[type(operation)](_value_of(first, operands), _value_of(second, operands))
        case _:
            raise NotComputable("not an expression of school")
