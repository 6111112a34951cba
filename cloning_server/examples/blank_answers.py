"""Answers that say nothing, or that the student does not know.

Knows nothing of models.
"""

import re

# Of the student: "scientists do not know why" and "the boy was not sure" ask nothing, nor does "I don't get wet".
UNKNOWING = (
    r"i (?:really |still )?(?:do not|don'?t) (?:know|understand|get(?= (?:it|this|that|how|why|what)\b|\W*$))"
    r"|idk|dunno|i have no idea|i'?m not sure|i am not sure|i forgot"
)
# At the start of an answer, the student leaves out that it is they who do not know.
_UNKNOWING_OPENING = (
    rf"(?:(?:sorry|um+|well|but|because) )?(?:{UNKNOWING}|(?:do not|don'?t) (?:know|understand)|no idea|not sure)"
)
# Over words with one space between them, as runs of optional blank space take quadratic time on text that is nearly
# blank.
_OPENING = re.compile(rf"(?:{_UNKNOWING_OPENING})\b")
_NOTHING_ELSE = re.compile(rf"(?:{_UNKNOWING_OPENING}|n a)(?: (?:it|this))?")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
# What stands where no answer is. Other signs, such as "<", may be answers.
_NO_ANSWER = frozenset(" ?!.,-_\u2013\u2014\u2026/")


def is_blank(answer: str) -> bool:
    """Whether an answer says nothing, or only that the student does not know."""
    return _NO_ANSWER.issuperset(plain(answer)) or _NOTHING_ELSE.fullmatch(_words(answer)) is not None


def after_unknowing(answer: str) -> str | None:
    """Returns what follows where an answer begins with that the student does not know; None if it begins otherwise."""
    words = _words(answer)
    opening = _OPENING.match(words)
    return words[opening.end() :] if opening else None


def plain(answer: str) -> str:
    """Returns an answer in lower case, with straight apostrophes and single spaces."""
    return " ".join(answer.lower().replace("\u2019", "'").split())


def _words(answer: str) -> str:
    return " ".join(_WORD.findall(plain(answer)))
