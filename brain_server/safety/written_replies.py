"""Replies that people wrote, for the moments in which no model should answer.

One JSON line each in `written_replies.jsonl`: for a occasion, a category and a grade band. None is a bare refusal:
each names a person to turn to or offers something else. `{help_line}` stands for the help line of the settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import ConfigDict, StringConstraints, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from brain_server.safety.verdict import SafetyAction, SafetyCategory, SafetyVerdict, TextKind
from mesh.tutoring.profile import GradeBand

# For a student of unknown grade: plain enough for young ones, and not childish for older ones.
_DEFAULT_BAND = GradeBand.G3_5


class Occasion(StrEnum):
    """When a reply is sent.

    SUPPORT: a student may be in trouble. REFUSE: a student asks for something harmful. REPLY: a model's reply turned
    harmful. FEEDBACK: a model's feedback on an answer did.
    """

    SUPPORT = "support"
    REFUSE = "refuse"
    REPLY = "reply"
    FEEDBACK = "feedback"


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WrittenReply:
    """One reply; `category` is None where it is the same for all."""

    occasion: Occasion
    band: GradeBand
    text: Annotated[str, StringConstraints(min_length=1)]
    category: SafetyCategory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenReplies:
    """Picks replies.

    Attributes:
        help_line: What support replies point to, such as `call or text 988`.
    """

    help_line: str

    def pick(self, verdict: SafetyVerdict, *, grade: str | None, in_feedback: bool = False) -> str:
        """Returns what is sent in place of a blocked text, for a student's grade; None if the grade is unknown."""
        band = GradeBand.of(grade) if grade else _DEFAULT_BAND
        occasion, category = _occasion_of(verdict, in_feedback=in_feedback)
        return load_written_replies()[occasion, category, band].replace("{help_line}", self.help_line)

    def wrote(self, text: str) -> bool:
        """Returns whether a text ends with one of the replies."""
        ends = (reply.replace("{help_line}", self.help_line) for reply in load_written_replies().values())
        return text.rstrip().endswith(tuple(ends))


@cache
def load_written_replies() -> Mapping[tuple[Occasion, SafetyCategory | None, GradeBand], str]:
    """Returns all replies by occasion, category and grade band."""
    lines = resources.files(__package__).joinpath("written_replies.jsonl").read_text("utf-8").splitlines()
    replies = [_REPLY.validate_json(line) for line in lines]
    return {(reply.occasion, reply.category, reply.band): reply.text for reply in replies}


def _occasion_of(verdict: SafetyVerdict, *, in_feedback: bool) -> tuple[Occasion, SafetyCategory | None]:
    if verdict.text is TextKind.REPLY:
        return Occasion.FEEDBACK if in_feedback else Occasion.REPLY, None
    occasion = Occasion.SUPPORT if verdict.action is SafetyAction.SUPPORT else Occasion.REFUSE
    return occasion, verdict.category


_REPLY = TypeAdapter(WrittenReply)
