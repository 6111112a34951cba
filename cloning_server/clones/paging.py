"""Page tokens: where a list of clones goes on, and of which list."""

import base64
import binascii

from mesh.errors import InvalidField, Violation


def token_after(number: int, student_id: str) -> str:
    """The token of the page after the clone with this number, in the list of a student or, if empty, of all."""
    return base64.urlsafe_b64encode(f"{number}/{student_id}".encode()).decode()


def number_in(token: str, *, student_id: str) -> int:
    """The number in a token of such a list.

    Raises:
        InvalidField: It is none.
    """
    try:
        number, _, student = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition("/")
        if student == student_id and number.isascii() and number.isdecimal():
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise InvalidField([Violation("page_token", "must be the next_page_token of a page of the same list")])
