"""Finds personal data: e-mail addresses, telephone numbers, street addresses, full names that a text announces.

A library reads telephone numbers; plain expressions find the other forms that children in the USA write. They prefer to
miss a rare form over flagging a number of arithmetic, a date or an address that history lessons name.
"""

import re
from collections.abc import Iterator

from phonenumbers import (
    Leniency,
    PhoneNumberFormat,
    PhoneNumberMatch,
    PhoneNumberMatcher,
    PhoneNumberType,
    format_number,
    is_valid_number,
    number_type,
)

from brain_server.safety.normalizer import reveal

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?![\w-])")
# Numbers without a country code are of this region.
_REGION = "US"
# Help lines and companies, never a person's.
_NOBODYS = frozenset(
    {PhoneNumberType.TOLL_FREE, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST, PhoneNumberType.UAN}
)
# Words by which a text itself calls the digits after them a telephone number.
_ANNOUNCED = re.compile(r"\b(?:phone|cell|mobile|telephone|number|digits|call|text)\b[^\d\n]*$", re.IGNORECASE)
_ANNOUNCED_WITHIN = 35
# Candidates without a number that the library looks at, so that a hostile text takes no longer than a page of figures.
_MOST_CANDIDATES = 500
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
_PATTERNS = (_EMAIL, _ADDRESS, _ANNOUNCED_ADDRESS, _FULL_NAME)


def personal_data_in(text: str) -> frozenset[str]:
    """Returns the personal data of a text: letters and digits alone, lower case."""
    plain = _FAMOUS.sub("", reveal(text).replace("\u2019", "'"))
    matches = [match[0] for pattern in _PATTERNS for match in pattern.finditer(plain)]
    matches += _telephone_numbers_in(plain)
    return frozenset("".join(filter(str.isalnum, match.casefold())) for match in matches)


def _telephone_numbers_in(text: str) -> Iterator[str]:
    for match in PhoneNumberMatcher(text, _REGION, leniency=Leniency.POSSIBLE, max_tries=_MOST_CANDIDATES):
        before = text[max(0, match.start - _ANNOUNCED_WITHIN) : match.start]
        if _is_telephone_number(match, before=before):
            yield match.raw_string


def _is_telephone_number(match: PhoneNumberMatch, *, before: str) -> bool:
    """Whether digits are a person's number, by two of three signs: the text says so, they look like one, it exists."""
    number, raw = match.number, match.raw_string
    if number_type(number) in _NOBODYS or re.search(r"[\w.,/-]$", before) or re.search(r"\s[-\u2013\u2212]\s", raw):
        return False
    groups = re.findall(r"\d+", format_number(number, PhoneNumberFormat.NATIONAL))
    looks_like_one = raw.startswith("+") or re.findall(r"\d+", raw)[-len(groups) :] == groups
    # Invented numbers have the area code 555.
    exists = is_valid_number(number) or re.fullmatch(r"555\d{7}", str(number.national_number)) is not None
    return (bool(_ANNOUNCED.search(before)) + looks_like_one + exists) >= 2
