"""Finds expressions and equations in prose."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mesh.tutoring.arithmetic.expression import MAX_TOKENS, Expression, parse_expression
from mesh.tutoring.arithmetic.quantity import NotComputable
from mesh.tutoring.arithmetic.tokens import Token, TokenKind, tokenize

# A text with more expressions and numbers is no question to a tutor; the rest of it is not read.
MAX_CHAINS = 64
# Characters before a chain that say what it is.
WINDOW = 60
_MATH = frozenset(
    {TokenKind.NUMBER, TokenKind.OPERATOR, TokenKind.UNIT, TokenKind.OPEN, TokenKind.CLOSE, TokenKind.EQUALS}
)
# Signs that ranges, scores, sizes and fractions have too; such expressions need a word that asks for them.
_WEAK_SIGNS = frozenset({"-", "–", "−", "x", "/", ":", "of", "times"})  # noqa: RUF001 (what students write)
# What may touch a chain without a blank.
_QUOTES = frozenset("\"'`[]{}|<>~…\u2018\u2019\u201c\u201d")
_FUNCTIONS = frozenset(
    "root roots log ln sin cos tan sqrt square cube factorial mod modulo mean median average absolute base".split()  # noqa: SIM905
)
# Single characters before a negative number; others are variables.
_BEFORE_SIGN = _QUOTES | frozenset(":,.?!;\n")
_REMAINDER = re.compile(r"\s?(?:r|rem|remainder|(?:with )?(?:a )?remainder(?: of)?)\.?\s?([0-9]{1,9})(?!\w|\.[0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Expressions between equals signs; often one alone.

    Attributes:
        sides: The expressions.
        is_open: Whether it ends with an equals sign.
        start: Index of its first character.
        end: Index after its last character.
        is_weak: Whether its signs alone don't show that something is to be computed.
        remainder: The remainder that stands behind the last side.
        is_spoken: Whether it has a number in words.
    """

    sides: tuple[Expression, ...]
    is_open: bool
    start: int
    end: int
    is_weak: bool
    remainder: int | None = None
    is_spoken: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is a number alone."""
        return len(self.sides) == 1 and self.sides[0].is_literal and not self.is_open

    @property
    def is_equation(self) -> bool:
        """Whether it says that expressions are equal."""
        return len(self.sides) > 1

    @property
    def asks(self) -> Expression:
        """The first side with something to compute, else the first."""
        return next((side for side in self.sides if not side.is_literal), self.sides[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class MathPassages:
    """The chains of a text, and whether it holds mathematics that is none, such as `2x + 3 = 7`."""

    chains: tuple[Chain, ...]
    has_rest: bool


def find_chains(text: str) -> MathPassages:
    """Returns the chains of a text, in order; what is no whole expression is left out."""
    tokens = tokenize(text)
    runs = itertools.groupby(range(len(tokens)), key=lambda index: tokens[index].kind in _MATH)
    chains: list[Chain] = []
    has_rest = False
    for is_math, indexes in runs:
        if not is_math:
            continue
        positions = list(indexes)
        first, last = positions[0], positions[-1] + 1
        chain = None if _continues(tokens, last) else _chain(text, tokens, first, last)
        if chain is None:
            kinds = {token.kind for token in tokens[first:last]}
            has_rest = has_rest or (TokenKind.NUMBER in kinds and bool(kinds & {TokenKind.OPERATOR, TokenKind.EQUALS}))
        # A number within the chain before it is that chain's remainder.
        elif not (chains and chain.start < chains[-1].end):
            chains.append(chain)
        if len(chains) > MAX_CHAINS:
            return MathPassages(chains=(), has_rest=True)
    return MathPassages(chains=tuple(chains), has_rest=has_rest)


def _continues(tokens: Sequence[Token], last: int) -> bool:
    """Whether a blank to fill in follows an equals sign, and more behind it: `8 + 4 = [ ] + 5`."""
    if tokens[last - 1].kind is not TokenKind.EQUALS:
        return False
    blank = itertools.takewhile(
        lambda token: token.kind is TokenKind.OTHER or token.text == "?", tokens[last : last + 6]
    )
    length = sum(1 for _ in blank)
    return length > 0 and last + length < len(tokens) and tokens[last + length].kind is TokenKind.OPERATOR


def _chain(text: str, tokens: Sequence[Token], first: int, last: int) -> Chain | None:
    if last - first > 4 * MAX_TOKENS:
        return None
    run = _trimmed(tokens[first:last], before=tokens[first - 1] if first else None)
    if not run:
        return None
    remainder = _REMAINDER.match(text[run[-1].end : run[-1].end + WINDOW].lower())
    following = tokens[last] if last < len(tokens) and run[-1] is tokens[last - 1] else None
    touches_before = first and run[0] is tokens[first] and _touches(tokens[first - 1], run[0])
    if touches_before or (following and not remainder and _touches(run[-1], following)):
        return None
    sides = list(_split(run))
    is_open = len(sides) > 1 and not sides[-1]
    try:
        expressions = tuple(parse_expression(side) for side in (sides[:-1] if is_open else sides))
    except NotComputable:
        return None
    return Chain(
        sides=expressions,
        is_open=is_open,
        start=run[0].start,
        end=run[-1].end + (remainder.end() if remainder else 0),
        is_weak=_is_weak(text, run),
        remainder=int(remainder[1]) if remainder else None,
        is_spoken=any(token.kind is TokenKind.NUMBER and token.is_spoken for token in run),
    )


def _touches(former: Token, latter: Token) -> bool:
    """Whether two neighbours are one word, such as `4x`, where a chain has no whole number."""
    if former.end != latter.start:
        return False
    outer = former if former.kind not in _MATH else latter
    return outer.kind is TokenKind.WORD or (outer.kind is TokenKind.OTHER and outer.text not in _QUOTES)


def _trimmed(run: Sequence[Token], *, before: Token | None) -> Sequence[Token]:
    """Returns a run without the `of` of "the sum of", and without brackets around or beside the whole."""
    if run[0].text == "of" and before and before.text not in _FUNCTIONS:
        run = run[1:]
    elif before and before.text in _FUNCTIONS:
        return ()
    if not run:
        return ()
    if len(run) > 1 and run[0].text == "-" and run[0].end < run[1].start:
        # "My answer - 45": a dash. Otherwise it subtracts from what is no number, as in "3x - 4".
        run = run[1:] if len(run) == 2 and before and len(before.text) > 1 else ()
    elif run[0].text == "-" and before and (before.kind is TokenKind.OTHER or len(before.text) == 1):
        run = run if before.text in _BEFORE_SIGN else ()
    while run and run[0].kind is TokenKind.OPEN and (_depth(run) > 0 or _encloses_equation(run)):
        run = run[1:-1] if _depth(run) == 0 else run[1:]
    while run and run[-1].kind is TokenKind.CLOSE and _depth(run) < 0:
        run = run[:-1]
    return run


def _depth(run: Sequence[Token]) -> int:
    return sum(token.kind is TokenKind.OPEN for token in run) - sum(token.kind is TokenKind.CLOSE for token in run)


def _encloses_equation(run: Sequence[Token]) -> bool:
    return run[-1].kind is TokenKind.CLOSE and any(token.kind is TokenKind.EQUALS for token in run)


def _split(run: Sequence[Token]) -> Iterator[list[Token]]:
    side: list[Token] = []
    for token in run:
        if token.kind is TokenKind.EQUALS:
            yield side
            side = []
        else:
            side.append(token)
    yield side


def _is_weak(text: str, run: Sequence[Token]) -> bool:
    signs = [text[token.start : token.end].lower() for token in run if token.kind is TokenKind.OPERATOR]
    # A superscript has a sign without characters.
    return all(sign in _WEAK_SIGNS for sign in signs if sign) and any(signs)
