"""Mathematics lessons whose numbers code has computed."""

from curriculum.mathematics.lessons import worked_lessons

__all__ = ["worked_lessons"]
