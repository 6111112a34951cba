"""Finds personal data: e-mail addresses, telephone numbers, street addresses, full names that a text announces.

Plain expressions for the forms that children in the USA write. They prefer to miss a rare form over flagging a number
of arithmetic, a date or an address that history lessons name.
"""

import re

from brain_server.safety.normalizer import reveal

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?![\w-])")
# Area code, exchange and line with signs between them, or the form +country. Ten bare digits may be from arithmetic.
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:(?:\+?1[\s.-]?)?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}[\s.-])[2-9]\d{2}[\s.-]\d{4}"
    r"|\+[2-9]\d{0,2}(?:[\s.-]?\d{2,4}){3,4})(?![\w/-])(?!\.\d)"
)
# Help lines and companies, never a person's.
_TOLL_FREE = re.compile(r"(?<!\d)(?:1[\s.-]?)?\(?8(?:00|33|44|55|66|77|88)\)?[\s.-]\d{3}[\s.-]\d{4}(?!\d)")
# Digits that the text itself calls a telephone number.
_ANNOUNCED_PHONE = re.compile(
    r"\b(?:phone|cell|mobile|telephone|number|digits|call|text)\b[^\d\n]{0,24}(?<!\d)(?:\d{10}|\d{3}[\s.-]\d{4})(?!\d)",
    re.IGNORECASE,
)
_STREET = (
    r"(?:street|st|avenue|ave|road|rd|lane|ln|drive|dr|court|ct|boulevard|blvd|place|pl|terrace|circle|parkway|pkwy"
    r"|highway|hwy|way|trail)"
)
_ADDRESS = re.compile(
    rf"(?<![\w.,$/-])\d{{1,5}}[A-Za-z]?\s+(?:[NSEW]\.?\s+)?(?:[A-Z][A-Za-z'.]+\s+|\d{{1,3}}(?:st|nd|rd|th)\s+){{1,3}}"
    rf"(?i:{_STREET})\b"
)
_ANNOUNCED_ADDRESS = re.compile(
    rf"\b(?:live|living|stay|house|home|apartment|address)\b[^\d\n]{{0,16}}\d{{1,5}}\s+(?:[\w'.]+\s+){{1,3}}{_STREET}\b",
    re.IGNORECASE,
)
# Addresses of civics and literature.
_FAMOUS = re.compile(r"\b(?:1600 Pennsylvania|10 Downing|221B Baker|350 Fifth|405 East 42nd)\b", re.IGNORECASE)
# "her full name is Maria Lopez", "my friend's name is Jo Kim": a first name alone is none.
_FULL_NAME = re.compile(
    r"\b(?i:(?:my|his|her|their|full|real|whole|friend'?s|teacher'?s|neighbou?r'?s|brother'?s|sister'?s)"
    r"(?:\s+(?:full|real|whole|first and last))?\s+name\s+is)\s+[A-Z][a-z'-]+\s+(?:[A-Z]\.?\s+)?[A-Z][a-z'-]+"
)
_PATTERNS = (_EMAIL, _PHONE, _ANNOUNCED_PHONE, _ADDRESS, _ANNOUNCED_ADDRESS, _FULL_NAME)


def personal_data_in(text: str) -> frozenset[str]:
    """Returns the personal data of a text: letters and digits alone, lower case."""
    plain = _TOLL_FREE.sub("", _FAMOUS.sub("", reveal(text).replace("\u2019", "'")))
    matches = (match[0] for pattern in _PATTERNS for match in pattern.finditer(plain))
    return frozenset("".join(filter(str.isalnum, match.casefold())) for match in matches)
