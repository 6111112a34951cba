"""Checks of a request's fields, gathered so that a caller learns of all faults at once.

A description names what would be accepted, limit included, and never the value: the value may be a student's words.
Knows nothing of gRPC or of any message.
"""

import re
from collections.abc import Collection
from typing import Self

from mesh.errors import InvalidField, Violation


class Fields:
    """Gathers the faults of one request, then raises them together.

    The check methods return nothing: a caller checks everything, calls `raise_if_any`, and only then uses the values.
    """

    def __init__(self) -> None:
        self._prefix = ""
        self._violations: list[Violation] = []

    def within(self, path: str) -> Self:
        """Returns the same collector for the fields of a part, such as `baseline_data.responses[3]`."""
        part = type(self)()
        part._prefix = f"{self._prefix}{path}."
        part._violations = self._violations
        return part

    def refuse(self, name: str, description: str) -> None:
        """Notes a fault that none of the checks below covers."""
        self._violations.append(Violation(f"{self._prefix}{name}", description))

    def include(self, error: InvalidField) -> None:
        """Notes the faults that a parser found; their paths count from the whole request."""
        self._violations.extend(error.violations)

    def require_text(self, name: str, value: str, *, max_chars: int) -> None:
        """Wants text that is more than white space and at most `max_chars` characters long."""
        if not value.strip():
            self.refuse(name, "must not be empty")
        self.text(name, value, max_chars=max_chars)

    def text(self, name: str, value: str, *, max_chars: int) -> None:
        """Wants text of at most `max_chars` characters; it may be empty."""
        if len(value) > max_chars:
            self.refuse(name, f"must be at most {max_chars:,} characters")

    def one_of(self, name: str, value: str, accepted: Collection[str], *, required: bool = False) -> None:
        """Wants one of the accepted words, or nothing unless it is required."""
        if value in accepted or (not value and not required):
            return
        self.refuse(name, f"must be one of {', '.join(accepted)}{'' if required else ', or empty'}")

    def pattern(self, name: str, value: str, pattern: re.Pattern[str], *, meaning: str, required: bool = False) -> None:
        """Wants text that matches as a whole, or nothing unless it is required; `meaning` tells the pattern."""
        if not value:
            if required:
                self.refuse(name, "must not be empty")
        elif pattern.fullmatch(value) is None:
            self.refuse(name, f"must be {meaning}")

    def between(self, name: str, value: float | None, *, low: float, high: float, above_low: bool = False) -> None:
        """Wants a number from `low` (or above it, if `above_low`) to `high`. NaN is refused; None is unset and fine."""
        if value is None:
            return
        # NaN fails both comparisons.
        if low <= value <= high and not (above_low and value == low):
            return
        self.refuse(name, f"must be {'above' if above_low else 'from'} {low:,g} to {high:,g}")

    def count(self, name: str, value: int, *, low: int = 0, high: int) -> None:
        """Wants a repeated field with `low` to `high` elements."""
        if not low <= value <= high:
            self.refuse(name, f"must have {f'{low:,} to' if low else 'at most'} {high:,} elements")

    def raise_if_any(self) -> None:
        """Ends the checks.

        Raises:
            InvalidField: If any check failed, with all faults in the order of the checks.
        """
        if self._violations:
            raise InvalidField(self._violations)
