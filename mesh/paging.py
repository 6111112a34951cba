"""Pages of lists, as AIP-158 has them: how many elements a page has, and where the next one starts.

A token holds the name of its list and a position in it, so that a token of another list is refused. Knows nothing of
what is listed.
"""

import base64
import binascii
import re
from collections.abc import Callable

from mesh.errors import InvalidField, Violation

PAGE_SIZE_DEFAULT = 20
PAGE_SIZE_HIGH = 100

# More digits than any number of ours has; Python refuses to convert thousands of them.
_NUMBER = re.compile(r"[0-9]{1,18}")


def clamp_page_size(page_size: int) -> int:
    """Returns the most elements of a page, for the size that the caller requests; 0 requests the default."""
    return min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_HIGH)


def token_after(position: int | str, list_name: str) -> str:
    """Returns the token of the page after the element at this position; for callers it is opaque."""
    return base64.urlsafe_b64encode(f"{position}\n{list_name}".encode()).decode()


def position_in(token: str, list_name: str, *, is_position: Callable[[str], bool]) -> str:
    """Returns the position in a token of this list.

    Callers can forge tokens, so whoever lists also says what a position of the list looks like.

    Raises:
        InvalidField: It is not a token of this list.
    """
    try:
        position, _, name = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition("\n")
    except (binascii.Error, ValueError):
        raise _refused() from None
    if name != list_name or not is_position(position):
        raise _refused()
    return position


def number_in(token: str, list_name: str) -> int:
    """The same where positions are whole numbers.

    Raises:
        InvalidField: It is not a token of this list.
    """
    return int(position_in(token, list_name, is_position=_is_number))


def _is_number(position: str) -> bool:
    return _NUMBER.fullmatch(position) is not None


def _refused() -> InvalidField:
    return InvalidField([Violation("page_token", "must be the next_page_token of a page of the same list")])
