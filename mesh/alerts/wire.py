"""What was found in a text, and alerts, as messages of the contract, which both servers send."""

from collections.abc import Iterable
from datetime import datetime

from aivo.safety.v1 import safety_pb2, safety_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.alerts.alert import Alert

# By their numbers, as `brain_server.safety.verdict.SafetyAction` has them.
_ACTIONS = (
    safety_pb2.SAFETY_ACTION_ALLOW,
    safety_pb2.SAFETY_ACTION_CAREFUL,
    safety_pb2.SAFETY_ACTION_REFUSE,
    safety_pb2.SAFETY_ACTION_SUPPORT,
)


def alert_from(alert: Alert) -> safety_service_pb2.SafetyAlert:
    """Converts an alert."""
    likeliest_first = sorted(alert.probabilities.items(), key=lambda item: item[1], reverse=True)
    acknowledge_time = alert.acknowledge_time
    return safety_service_pb2.SafetyAlert(
        alert_id=alert.alert_id,
        sequence=alert.sequence,
        student_id=alert.student_id,
        categories=probabilities_from(likeliest_first),
        action=action_from(alert.action),
        text=text_from(alert.text),
        guard=alert.guard,
        count=alert.count,
        create_time=_timestamp(alert.create_time),
        update_time=_timestamp(alert.update_time),
        request_id=alert.request_id,
        acknowledge_time=None if acknowledge_time is None else _timestamp(acknowledge_time),
        acknowledged_by=alert.acknowledged_by,
        words=alert.words,
    )


def probabilities_from(probabilities: Iterable[tuple[str, float]]) -> list[safety_pb2.CategoryProbability]:
    """Converts probabilities by the names of their categories, in their order."""
    return [
        safety_pb2.CategoryProbability(
            category=safety_pb2.SafetyCategory.Value(f"SAFETY_CATEGORY_{name.upper()}"),
            probability=round(probability, 4),
        )
        for name, probability in probabilities
    ]


def action_from(action: int) -> safety_pb2.SafetyAction.ValueType:
    """Converts the number of an action."""
    return _ACTIONS[action]


def text_from(name: str) -> safety_pb2.ScreenedText.ValueType:
    """Converts the name of the text that something was found in: PROMPT, HISTORY or REPLY."""
    return safety_pb2.ScreenedText.Value(f"SCREENED_TEXT_{name}")


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
