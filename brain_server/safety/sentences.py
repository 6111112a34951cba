"""Holds a reply back, sentence by sentence, until it is screened."""

import re

# A sentence's mark with what closes it, or a line break.
_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]*]*\s|\n")
# The first text should come soon. Later ones take several short sentences together, as each costs a prefill.
_FIRST_CHARACTERS, _NEXT_CHARACTERS = 20, 80
# A text without an end is taken at a blank: nothing is held for ever, and the guard learned from short texts.
_MOST_CHARACTERS = 400
# What is read again before a new text: a sentence may be harmful only after the one before it.
_OVERLAP_CHARACTERS = 160


class HeldText:
    """The text of a reply: what was let through, and what is held.

    Attributes:
        passed: The text that was let through.
        pending: The text that was not yet.
    """

    def __init__(self) -> None:
        self.passed = ""
        self.pending = ""

    def add(self, text: str) -> None:
        """Holds more text."""
        self.pending += text

    def next_text(self, *, is_whole: bool) -> str:
        """Returns what to screen next: the complete sentences, or all if the reply is whole; empty to wait for more."""
        if is_whole:
            return self.pending
        least = _NEXT_CHARACTERS if self.passed else _FIRST_CHARACTERS
        ends = [match.end() for match in _END.finditer(self.pending)]
        if ends and ends[-1] >= least:
            return self.pending[: ends[-1]]
        if len(self.pending) > _MOST_CHARACTERS:
            return self.pending[: self.pending.rfind(" ", least, _MOST_CHARACTERS) + 1 or _MOST_CHARACTERS]
        return ""

    def in_context(self, text: str) -> str:
        """Returns a text to screen after the end of what was let through."""
        before = self.passed[-_OVERLAP_CHARACTERS:]
        if len(self.passed) > _OVERLAP_CHARACTERS:
            before = before.partition(" ")[2]
        return f"{before}{text}".strip()

    def let_through(self, text: str) -> None:
        """Moves the beginning of what is held to what was let through."""
        assert self.pending.startswith(text), "only what is held is let through, in order"
        self.passed += text
        self.pending = self.pending[len(text) :]
