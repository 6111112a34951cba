"""Cuts a text into numbers, operators and words, in one pass.

Dates, times, telephone numbers, versions and terms with letters (`2x`, `H2`) become tokens of their own, so that nobody
computes with them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction

from mesh.tutoring.arithmetic.quantity import MAX_DIGITS, UNITS

# fmt: off
_SMALL_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
NUMBER_WORDS = {
    **{word: number for number, word in enumerate(_SMALL_NUMBERS)},
    **{word: 10 * (index + 2) for index, word in enumerate(_TENS)},
}


class TokenKind(Enum):
    """What a token is."""

    NUMBER = auto()
    OPERATOR = auto()
    UNIT = auto()
    OPEN = auto()
    CLOSE = auto()
    EQUALS = auto()
    WORD = auto()
    STOP = auto()
    COMMA = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A piece of a text.

    Attributes:
        kind: What it is.
        text: What it says, lower case; of an operator its sign: `+`, `-`, `x`, `÷`, `/`, `:`, `^` or `of`.
        start: Index of its first character.
        end: Index after its last character.
        number: The value of a number.
        is_decimal: Whether a number has a decimal point or comma.
        is_spoken: Whether it was written in words.
    """

    kind: TokenKind
    text: str
    start: int
    end: int
    number: Fraction = Fraction(0)
    is_decimal: bool = False
    is_spoken: bool = False


_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}
_SUPERSCRIPTS = {"²": "2", "³": "3"}
_OPERATORS = {
    "+": "+", "plus": "+", "added to": "+",
    "-": "-", "−": "-", "–": "-", "minus": "-", "take away": "-", "subtract": "-",  # noqa: RUF001 (students write them)
    "*": "x", "×": "x", "·": "x", "∙": "x", "times": "x", "multiplied by": "x",  # noqa: RUF001
    "÷": "÷", "/": "/", ":": ":", "divided by": "÷",
    "^": "^", "**": "^", "to the power of": "^",
    "of": "of",
}  # fmt: skip
_TOKEN = re.compile(
    r"""
      (?P<marker>^[ \t]{0,8}(?:\(?(?:[0-9]{1,2}|[a-z])[.)]|[-*•])[ \t]+)
    | (?P<other>
          [0-9]{1,4}[/.][0-9]{1,2}[/.][0-9]{1,4}(?![0-9/.])  # a date
        | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?![0-9]) | [0-9]{1,2}-[0-9]{1,2}-[0-9]{4}(?![0-9])
        | (?:[0-9]{3}[-.][0-9]{3}[-.]|[0-9]{3}-)[0-9]{4}(?![0-9])  # a telephone number
        | [0-9]{1,2}:[0-5][0-9](?![0-9])  # a time
        | [0-9]+(?:\.[0-9]+){2,} | [0-9]+(?:/[0-9]+){2,} | [0-9]+(?::[0-9]+){2,}
      )
    | (?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,][0-9])
        | [0-9]+(?:,[0-9]+){2,} | [0-9]+[.,][0-9]+ | [0-9]+ | (?<![\w.])\.[0-9]+)
    | (?P<vulgar>[½⅓⅔¼¾⅛⅜⅝⅞])
    | (?P<superscript>[²³])
    | (?P<operator>\*\*|[-+−–*×·∙÷/:^]
        | (?:added[ ]to|multiplied[ ]by|divided[ ]by|take[ ]away|to[ ]the[ ]power[ ]of)\b)
    | (?P<equals>==?(?![>=]) | (?:is[ ])?equals?(?:[ ]to)?\b)
    | (?P<times>x(?=\s{0,3}-?[0-9(.$]))
    | (?P<word>[^\W\d_][^\W_]*(?:['\u2019][^\W\d_]+)?)
    | (?P<sign>[$€£¢%°])
    | (?P<open>[(]) | (?P<close>[)])
    | (?P<comma>[,])
    | (?P<stop>[.!?;]+|\n+)
    | (?P<blank>[^\S\n]+)
    | (?P<rest>.)
    """,  # noqa: RUF001 (what students write)
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_KINDS = {
    "other": TokenKind.OTHER, "rest": TokenKind.OTHER, "open": TokenKind.OPEN, "close": TokenKind.CLOSE,
    "comma": TokenKind.COMMA, "stop": TokenKind.STOP, "marker": TokenKind.STOP, "equals": TokenKind.EQUALS,
    "sign": TokenKind.UNIT,
}  # fmt: skip
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def tokenize(text: str) -> list[Token]:
    """Returns the tokens of a text, in order. Takes time in proportion to its length."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        group = str(match.lastgroup)
        if group == "blank":
            continue
        following = text[match.end() : match.end() + 4]
        previous = tokens[-1] if tokens else None
        word = match[0].lower()
        tokens.extend(_tokens_from(group, word, match.span(), previous, following=following))
    return _join_number_words([_inches_or_word(tokens, index) for index in range(len(tokens))])


def _inches_or_word(tokens: list[Token], index: int) -> Token:
    """Reads `in` as inches after feet alone; elsewhere it is a word, as in "3 x 4 in words"."""
    token = tokens[index]
    if token.kind is not TokenKind.UNIT or token.text != "in":
        return token
    if index > 1 and tokens[index - 2].text in {"ft", "foot", "feet"}:
        return token
    return Token(kind=TokenKind.WORD, text="in", start=token.start, end=token.end)


def _tokens_from(
    group: str, word: str, span: tuple[int, int], previous: Token | None, *, following: str
) -> Iterator[Token]:
    start, end = span
    adjacent = previous is not None and previous.end == start
    if group == "number":
        yield _number(word, start)
    elif group == "vulgar":
        numerator, denominator = _VULGAR[word].split("/")
        value = Fraction(int(numerator), int(denominator))
        yield Token(kind=TokenKind.NUMBER, text=_VULGAR[word], start=start, end=end, number=value)
    elif group == "superscript":
        yield Token(kind=TokenKind.OPERATOR, text="^", start=start, end=start)
        value = Fraction(int(_SUPERSCRIPTS[word]))
        yield Token(kind=TokenKind.NUMBER, text=_SUPERSCRIPTS[word], start=start, end=end, number=value)
    elif group == "operator" and word == ":" and adjacent and not following[:1].strip():
        # "My answer: 45": punctuation.
        yield Token(kind=TokenKind.COMMA, text=word, start=start, end=end)
    elif group == "operator":
        yield Token(kind=TokenKind.OPERATOR, text=_OPERATORS[word], start=start, end=end)
    elif group == "times":
        # "2x -5" holds a variable, "2 x -5" does not.
        is_term = adjacent and following.lstrip().startswith("-")
        is_factor = (
            not is_term
            and previous is not None
            and previous.kind in {TokenKind.NUMBER, TokenKind.CLOSE, TokenKind.UNIT}
        )
        kind = TokenKind.OPERATOR if is_factor else TokenKind.OTHER
        yield Token(kind=kind, text="x", start=start, end=end)
    elif group == "word":
        yield from _word(word, span, adjacent=adjacent, previous=previous)
    else:
        yield Token(kind=_KINDS[group], text=word, start=start, end=end)


def _number(word: str, start: int) -> Token:
    end = start + len(word)
    plain = word.replace(",", "") if _THOUSANDS.fullmatch(word) and not word.startswith("0") else word.replace(",", ".")
    if plain.count(".") > 1 or len(plain) > MAX_DIGITS:
        return Token(kind=TokenKind.OTHER, text=word, start=start, end=end)
    return Token(
        kind=TokenKind.NUMBER, text=plain, start=start, end=end, number=Fraction(plain), is_decimal="." in plain
    )


def _word(word: str, span: tuple[int, int], *, adjacent: bool, previous: Token | None) -> Iterator[Token]:
    start, end = span
    follows_number = previous is not None and previous.kind is TokenKind.NUMBER
    if word in {"squared", "cubed"}:
        yield Token(kind=TokenKind.OPERATOR, text="^", start=start, end=start)
        exponent = 2 if word == "squared" else 3
        yield Token(
            kind=TokenKind.NUMBER, text=str(exponent), start=start, end=end, number=Fraction(exponent), is_spoken=True
        )
    elif follows_number and word in UNITS:
        yield Token(kind=TokenKind.UNIT, text=word, start=start, end=end)
    elif follows_number and adjacent:
        # "2x", "3D", "4th": not the number that it begins with.
        yield Token(kind=TokenKind.OTHER, text=word, start=start, end=end)
    elif word in _OPERATORS:
        yield Token(kind=TokenKind.OPERATOR, text=_OPERATORS[word], start=start, end=end, is_spoken=True)
    elif word in NUMBER_WORDS or word in _SCALES:
        value = Fraction(NUMBER_WORDS.get(word, _SCALES.get(word, 0)))
        yield Token(kind=TokenKind.NUMBER, text=str(value), start=start, end=end, number=value, is_spoken=True)
    elif word == "half":
        yield Token(kind=TokenKind.NUMBER, text="1/2", start=start, end=end, number=Fraction(1, 2), is_spoken=True)
    else:
        yield Token(kind=TokenKind.WORD, text=word, start=start, end=end)


def _join_number_words(tokens: list[Token]) -> list[Token]:
    """Joins `fifty`, `-`, `six` and `two`, `hundred`: one number, written in words."""
    joined: list[Token] = []
    for token in tokens:
        if not (token.kind is TokenKind.NUMBER and token.is_spoken and token.number.denominator == 1 and joined):
            joined.append(token)
            continue
        hyphen = joined[-1].text == "-" and joined[-1].end - joined[-1].start == 1 and joined[-1].end == token.start
        first = joined[-2] if hyphen and len(joined) > 1 else joined[-1]
        total = _joined_value(first, token)
        if total is None:
            joined.append(token)
            continue
        del joined[-2 if hyphen else -1 :]
        joined.append(
            Token(
                kind=TokenKind.NUMBER, text=str(total), start=first.start, end=token.end, number=Fraction(total),
                is_spoken=True,
            )
        )  # fmt: skip
    return joined


def _joined_value(first: Token, second: Token) -> int | None:
    if first.kind is not TokenKind.NUMBER or first.number.denominator != 1 or first.number <= 0:
        return None
    high, low = int(first.number), int(second.number)
    if low in _SCALES.values() and high < 1000 * low:
        # "two hundred", "3 million"
        return high * low
    if not first.is_spoken:
        return None
    if high % 100 >= 20 and high % 10 == 0 and 0 < low < 10:
        return high + low
    if high % 100 == 0 and 0 < low < 100:
        return high + low
    return None
