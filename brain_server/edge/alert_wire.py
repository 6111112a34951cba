"""Between SafetyService's messages and the domain, both ways."""

from dataclasses import dataclass

from aivo.safety.v1 import safety_service_pb2 as pb
from google.protobuf.json_format import MessageToJson

from brain_server.alerts.feed import AlertEvent
from brain_server.safety.rules import SpokenText
from brain_server.safety.screening import calls_for_alert
from brain_server.safety.verdict import SafetyVerdict, TextKind
from mesh.alerts.alert import Alert
from mesh.alerts.wire import action_from, alert_from, probabilities_from
from mesh.paging import clamp_page_size, number_in, token_after
from mesh.tutoring.profile import parse_profile

_LIST_NAME = "alerts"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToCheck:
    """A text, which text of a call it stands for, and the student's grade."""

    spoken: SpokenText
    kind: TextKind
    grade: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertQuery:
    """Which alerts to list; see `AlertStore.list_latest`."""

    student_id: str
    size: int
    below: int | None


def text_to_check_from(request: pb.CheckTextRequest) -> TextToCheck:
    """Converts a text to check."""
    return TextToCheck(
        spoken=SpokenText(text=request.text, by_student=not request.is_reply),
        kind=TextKind.REPLY if request.is_reply else TextKind.PROMPT,
        grade=parse_profile(grade=request.context.grade).grade,
    )


def check_from(verdict: SafetyVerdict, *, reply: str) -> pb.CheckTextResponse:
    """Converts a verdict, with what would be sent in place of the reply."""
    return pb.CheckTextResponse(
        action=action_from(verdict.action),
        categories=probabilities_from(verdict.probabilities.items()),
        alert=calls_for_alert(verdict),
        guard=verdict.guard,
        reply=reply,
    )


def query_from(request: pb.ListAlertsRequest) -> AlertQuery:
    """Converts which page is meant.

    Raises:
        InvalidField: The token is not one of this list.
    """
    token = request.page_token
    return AlertQuery(
        student_id=request.student_id,
        size=clamp_page_size(request.page_size),
        below=number_in(token, _LIST_NAME) if token else None,
    )


def page_from(alerts: list[Alert], *, size: int) -> pb.ListAlertsResponse:
    """Converts a page; `alerts` may hold one more, which says that there is a next."""
    token = token_after(alerts[size - 1].sequence, _LIST_NAME) if len(alerts) > size else ""
    return pb.ListAlertsResponse(alerts=map(alert_from, alerts[:size]), next_page_token=token)


def event_from(event: AlertEvent) -> pb.WatchAlertsResponse:
    """Converts a change of an alert, or a heartbeat."""
    return pb.WatchAlertsResponse(
        sequence=event.sequence,
        heartbeat=event.alert is None,
        alert=None if event.alert is None else alert_from(event.alert),
    )


def json_of(alert: Alert) -> bytes:
    """Returns an alert's JSON, as REST gives it."""
    message = alert_from(alert)
    text = MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return text.encode()
