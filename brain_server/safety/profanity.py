"""Finds bad language by a library's list, read with the spelling tricks undone.

The list leaves mild words such as "damn" out. Its words that lessons use are allowed here.
"""

from functools import cache

from profanex import Category, Filter, FilterConfig

from brain_server.safety.normalizer import spellings

# "rape" is a topic, and so the guard's; lessons speak of Bloody Sunday.
_CATEGORIES = frozenset(Category) - {Category.VIOLENCE}
# What lessons say: animals, plants and fables; the body; history and literature; chemistry; games; laws; powers in
# Python.
_AT_SCHOOL = (
    *("ass", "cock", "cocks", "cooter", "maine coon", "maine coons", "pussy willow", "pussy willows", "pussy cat"),
    *("blue tits", "coal tits", "great tits", "marsh tits", "willow tits", "bestial"),
    *("anus", "clitoris", "ejaculate", "ejaculated", "ejaculates", "ejaculating", "ejaculation", "porn", "porno"),
    *("cnut", "deep throat", "prick", "pricks", "lovely pussy", "chink in", "chinks in", "chink of"),
    *("william the bastard", "bastard son", "bastard sons", "retard the", "retards the"),
    *("cornhole", "dink", "dinks", "cipa", "a55", "c**t", "d**k", "s**t"),
)
# Forms that the list lacks.
_ALSO = ("fck", "fuk", "fuckin", "motherfuckin", "shits", "shitting", "bitchy", "wtf")


def is_profane(text: str) -> bool:
    """Returns whether a text has bad language."""
    return any(map(_filter().contains, spellings(text)))


@cache
def _filter() -> Filter:
    # The normalizer of this package reads leet, as the library's would find words in formulas.
    config = FilterConfig(categories=_CATEGORIES, extra_allowlist=_AT_SCHOOL, extra_banned=_ALSO, normalize_leet=False)
    return Filter(config)
