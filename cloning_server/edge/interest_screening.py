"""Which interests a clone may learn to name: none with bad language, by a library's list.

Stricter than what screens replies, where lessons may say some of these words.
"""

from functools import cache
from unicodedata import normalize

from profanex import Category, Filter, FilterConfig

# Pets, birds and plants that a child may like.
_HARMLESS = (
    *("maine coon", "maine coons", "pussy cat", "pussy cats", "pussy willow", "pussy willows"),
    *("blue tits", "coal tits", "great tits"),
)


def has_bad_language(interest: str) -> bool:
    """Whether an interest has a word of the list, also in full-width letters."""
    return _filter().contains(normalize("NFKC", interest))


@cache
def _filter() -> Filter:
    return Filter(FilterConfig(categories=frozenset(Category), extra_allowlist=_HARMLESS, normalize_leet=False))
