"""A safety alert: what was found in a student's texts within a few minutes.

Categories, actions and texts are words and numbers here; the brain gives them their meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

# The fields of a hash that hold probabilities begin with this.
PROBABILITY_PREFIX = "probability:"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFinding:
    """What was found in one text.

    Attributes:
        finding_id: Unique, so that the store counts it once however often it is sent.
        student_id: The student; empty if the call names none.
        probabilities: The probability of each category that was found.
        action: What was done; a higher number goes before a lower one.
        text: Which text of the call it was.
        guard: Who judged.
        request_id: Id of the call.
        words: The text itself; empty if it is not to be kept.
    """

    finding_id: str
    student_id: str
    probabilities: Mapping[str, float]
    action: int
    text: str
    guard: str
    request_id: str
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert as of its latest change; see `NewFinding` for what its latest finding says.

    Attributes:
        sequence: Number of that change, among the changes of all alerts.
        probabilities: The highest probability of each category.
        action: The highest of all findings.
        count: Texts in which something was found.
        create_time: When the first was found.
        update_time: When it last changed.
        acknowledge_time: When an adult took care of it; None if nobody has.
        acknowledged_by: Who did.
    """

    alert_id: str
    sequence: int
    student_id: str
    probabilities: Mapping[str, float]
    action: int
    text: str
    guard: str
    request_id: str
    count: int
    create_time: datetime
    update_time: datetime
    words: str = ""
    acknowledge_time: datetime | None = None
    acknowledged_by: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> "Alert":
        """Returns the alert that a hash of the store holds.

        Raises:
            KeyError, ValueError: The hash is no alert's.
        """
        acknowledged_at = fields.get("acknowledge_milliseconds")
        return cls(
            alert_id=fields["alert_id"],
            sequence=int(fields["sequence"]),
            student_id=fields["student_id"],
            probabilities={
                name.removeprefix(PROBABILITY_PREFIX): float(value)
                for name, value in fields.items()
                if name.startswith(PROBABILITY_PREFIX)
            },
            action=int(fields["action"]),
            text=fields["text"],
            guard=fields["guard"],
            request_id=fields["request_id"],
            count=int(fields["count"]),
            create_time=_time(fields["create_milliseconds"]),
            update_time=_time(fields["update_milliseconds"]),
            words=fields["words"],
            acknowledge_time=None if acknowledged_at is None else _time(acknowledged_at),
            acknowledged_by=fields.get("acknowledged_by", ""),
        )


def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
