"""Finds a child who says that they feel bad, without a sign of danger: sad, lonely, disliked, afraid to go home.

The guard learns that sadness is no harm, and so it is none; but the child needs a person, and a small model's reply
names none. Few expressions, of the child's own present: a sadness with a cause ("about my test"), of others, of a book
or in the past goes to the tutor, which has learned to meet it. They search the spellings that `rule_readings` returns.
"""

import re
from collections.abc import Iterable

# Where a clause begins: a quoted "I am sad" is somebody else's.
_START = r"(?:^|[.!?,]\s*|\b(?:and|but|so|because|cuz|bc|that|why do|i think|honestly|lately|today|sometimes|again)\s+)"
_SELF = r"(?:i(?:'m| am)? (?:just )?feel(?:ing)?|im feeling|i(?:'m| am)|im|i(?:'ve|ve| have)? been(?: feeling)?)"
_FEELING = r"(?:i(?:'m| am)? (?:just )?feel(?:ing)?|im feeling|i(?:'ve|ve| have)? been feeling)"
_VERY = r"(?:(?:so|really|very|super|just|always|still|too|extremely|all) )*"
_SAD = r"(?:sad|unhappy|lonely|miserable|depressed|heartbroken|not (?:okay|ok|happy))"
_LOW = r"(?:alone|down|empty|hopeless|worthless|unloved|unwanted|like crying|like a burden)"
_WHEN = (
    r"(?:\s+(?:today|tonight|lately|inside|again|now|right now|these days|every ?day|every night|all (?:of )?the time"
    r"|all day|always|at school|at home|anymore|any more|this week))*"
)
# The clause ends, or goes on with what is no cause.
_END = r"(?=\s*(?:$|[^\w\s'\"]|and (?:i|i'm|im|nobody|no ?one|everyone|everybody)\b))"
_OFTEN = r"(?:a lot|myself to sleep|every ?day|every night|all (?:of )?the time|all day)"
_NOBODY_LIKES = r"(?:nobody|no ?one) (?:at school |here |ever |really )?(?:likes?|loves?|cares about|wants)"
_DISTRESS = re.compile(
    "|".join(
        (
            rf"{_START}{_SELF} {_VERY}{_SAD}(?: and {_VERY}(?:{_SAD}|{_LOW}|mad|angry|tired|scared))*{_WHEN}{_END}",
            rf"{_START}{_FEELING} {_VERY}{_LOW}(?: and {_VERY}(?:{_SAD}|{_LOW}))*{_WHEN}{_END}",
            rf"{_START}i (?:just )?cry {_OFTEN}{_END}",
            rf"{_START}i (?:can'?t stop|keep) crying{_WHEN}{_END}",
            rf"{_START}(?:i feel like )?(?:{_NOBODY_LIKES}|everyone hates|everybody hates) me{_WHEN}{_END}",
            rf"{_START}i (?:really |just )?hate (?:myself|my life|being me){_WHEN}{_END}",
            rf"{_START}i (?:have no|don'?t have any) friends{_WHEN}{_END}",
            r"\bi(?:'m| am|m)? (?:too |so |really )?(?:scared|afraid) (?:to go|of going) (?:back )?home\b",
            rf"{_START}(?:me siento|estoy) (?:muy |tan )?(?:triste|deprimid[oa]|sol[oa]){_END}",
        )
    )
)
# Sentences to write, to translate or to quote say of themselves what they are.
_SCHOOL_WORK = re.compile(
    r"\b(?:sentences?|translat\w+|synonyms?|antonyms?|rhymes?|adjectives?|verbs?|grammar|poem|lyrics|character|essay"
    r"|paragraph|story|stories|dialogue|quote)\b"
)


def tells_distress(readings: Iterable[str]) -> bool:
    """Returns whether a student says that they feel bad; `readings` are the text in its possible spellings."""
    return any(_DISTRESS.search(reading) and not _SCHOOL_WORK.search(reading) for reading in readings)
