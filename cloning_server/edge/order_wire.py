"""What StartClone asks for, converted. The student's name ends here: nothing behind knows it.

Requests that come here follow the rules of their protos: the interceptor has checked them (`mesh.rpc.validation`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from cloning_server.clone import Baseline, BaselineResponse, Consent, Priority, Terms
from mesh.errors import InvalidField, Violation
from mesh.tutoring.profile import parse_interests, parse_profile

_PRIORITIES: Mapping[int, Priority] = {
    pb.CLONE_PRIORITY_LOW: Priority.LOW,
    pb.CLONE_PRIORITY_NORMAL: Priority.NORMAL,
    pb.CLONE_PRIORITY_HIGH: Priority.HIGH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneOrder:
    """What StartClone asks for; an empty request id is none."""

    student_id: str
    baseline: Baseline
    request_id: str
    terms: Terms


def order_from(request: pb.StartCloneRequest) -> CloneOrder:
    """Converts what to clone, and leaves the student's name behind.

    Raises:
        InvalidField: The consent has a time that no calendar has.
    """
    data, profile = request.baseline_data, request.student_profile
    baseline = Baseline(
        profile=parse_profile(
            grade=profile.grade, learning_style=profile.learning_style, disability=profile.disability
        ),
        responses=tuple(map(_response_from, data.responses)),
        interests=parse_interests(profile.interests),
        assessment_id=data.assessment_id,
        overall_score=data.overall_score if data.HasField("overall_score") else None,
        max_score=data.max_score if data.HasField("max_score") else None,
    )
    terms = Terms(
        priority=_PRIORITIES[request.priority] if request.HasField("priority") else Priority.NORMAL,
        queue_behind=request.queue_behind,
        base_version=request.base_version,
        consent=_consent_from(request.consent) if request.HasField("consent") else None,
    )
    return CloneOrder(student_id=request.student_id, baseline=baseline, request_id=request.request_id, terms=terms)


def _consent_from(consent: pb.Consent) -> Consent:
    return Consent(
        basis=consent.basis,
        granted_time=_time_from("consent.grant_time", consent.grant_time),
        expires_time=_time_from("consent.expire_time", consent.expire_time)
        if consent.HasField("expire_time")
        else None,
    )


def _time_from(path: str, timestamp: Timestamp) -> datetime:
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidField([Violation(path, "must be a time between the years 1 and 9999")]) from None


def _response_from(response: pb.BaselineResponse) -> BaselineResponse:
    return BaselineResponse(
        question=response.question,
        student_answer=response.student_answer,
        item_id=response.item_id,
        subject=_label_from(response.subject),
        skill=_label_from(response.skill),
        reference_answer=response.reference_answer,
        is_correct=response.is_correct if response.HasField("is_correct") else None,
        score=response.score if response.HasField("score") else None,
        teacher_feedback=response.teacher_feedback,
    )


def _label_from(text: str) -> str:
    """A label without blank space around and between its words, so that one skill has one record."""
    return " ".join(text.split())
