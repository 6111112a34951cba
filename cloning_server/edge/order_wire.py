"""What StartClone asks for, parsed. The student's name ends here: nothing behind knows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from cloning_server.clone import Baseline, BaselineResponse, Consent, Priority, Terms
from mesh.adapters.ref import is_student_id
from mesh.errors import InvalidField
from mesh.rpc.validation import Fields
from mesh.tutoring.profile import MAX_SUBJECT_CHARACTERS, StudentProfile, parse_profile

RESPONSES_LOW, RESPONSES_HIGH = 2, 1_000
TEXT_CHARS = 4_000
NAME_CHARS = 128
# How far the caller's clock may be before ours.
CLOCK_SKEW = timedelta(minutes=5)
_ID_MEANING = "1 to 64 letters, digits, dots, dashes or underscores, start with a letter or digit"
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
    """Parses what to clone, and leaves the student's name behind.

    Raises:
        InvalidField: With every fault of the request.
    """
    fields = Fields()
    check_id(fields, "student_id", request.student_id)
    if request.request_id:
        check_id(fields, "request_id", request.request_id)
    terms = _terms_from(fields, request)
    profile = _profile_from(fields, request.student_profile)
    data = request.baseline_data
    inside = fields.within("baseline_data")
    inside.text("assessment_id", data.assessment_id, max_chars=NAME_CHARS)
    inside.between("overall_score", _overall_score(data), low=0, high=100)
    inside.count("responses", len(data.responses), low=RESPONSES_LOW, high=RESPONSES_HIGH)
    # A request that is too long by far is not worth reading on.
    for index, response in enumerate(data.responses[:RESPONSES_HIGH]):
        _check_response(inside.within(f"responses[{index}]"), response)
    fields.raise_if_any()
    baseline = Baseline(
        profile=profile,
        responses=tuple(map(_response_from, data.responses)),
        assessment_id=data.assessment_id,
        overall_score=_overall_score(data),
    )
    return CloneOrder(student_id=request.student_id, baseline=baseline, request_id=request.request_id, terms=terms)


def check_id(fields: Fields, name: str, value: str) -> None:
    """Wants an id as `STUDENT_ID_PATTERN` allows."""
    if not is_student_id(value):
        fields.refuse(name, f"must be {_ID_MEANING} and hold no two dots in a row")


def _terms_from(fields: Fields, request: pb.StartCloneRequest) -> Terms:
    priority = request.priority if request.HasField("priority") else pb.CLONE_PRIORITY_NORMAL
    if priority not in _PRIORITIES:
        fields.refuse("priority", f"must be one of {', '.join(pb.ClonePriority.keys()[1:])}")
    if request.HasField("base_version") and not request.base_version:
        fields.refuse("base_version", "must be 1 or more")
    consent = _consent_from(fields.within("consent"), request.consent) if request.HasField("consent") else None
    return Terms(
        priority=_PRIORITIES.get(priority, Priority.NORMAL),
        queue_behind=request.queue_behind,
        base_version=request.base_version,
        consent=consent,
    )


def _consent_from(fields: Fields, consent: pb.Consent) -> Consent:
    check_id(fields, "basis", consent.basis)
    granted = _time_from(fields, "grant_time", consent.grant_time)
    expires = _time_from(fields, "expire_time", consent.expire_time) if consent.HasField("expire_time") else None
    if not consent.HasField("grant_time"):
        fields.refuse("grant_time", "must be set")
    elif granted > datetime.now(UTC) + CLOCK_SKEW:
        fields.refuse("grant_time", "must not be in the future")
    if expires is not None and expires <= granted:
        fields.refuse("expire_time", "must be later than grant_time")
    return Consent(basis=consent.basis, granted_time=granted, expires_time=expires)


def _time_from(fields: Fields, name: str, timestamp: Timestamp) -> datetime:
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        fields.refuse(name, "must be a time between the years 1 and 9999")
        return datetime.now(UTC)


def _profile_from(fields: Fields, profile: pb.StudentProfile) -> StudentProfile:
    try:
        return parse_profile(
            "student_profile.",
            grade=profile.grade,
            learning_style=profile.learning_style,
            disability=profile.disability,
        )
    except InvalidField as error:
        fields.include(error)
        return StudentProfile()


def _check_response(fields: Fields, response: pb.BaselineResponse) -> None:
    fields.text("item_id", response.item_id, max_chars=NAME_CHARS)
    fields.text("subject", response.subject, max_chars=MAX_SUBJECT_CHARACTERS)
    fields.text("skill", response.skill, max_chars=NAME_CHARS)
    fields.require_text("question", response.question, max_chars=TEXT_CHARS)
    fields.text("reference_answer", response.reference_answer, max_chars=TEXT_CHARS)
    fields.require_text("student_answer", response.student_answer, max_chars=TEXT_CHARS)
    fields.between("score", _score(response), low=0, high=100)
    fields.text("teacher_feedback", response.teacher_feedback, max_chars=TEXT_CHARS)


def _response_from(response: pb.BaselineResponse) -> BaselineResponse:
    return BaselineResponse(
        question=response.question,
        student_answer=response.student_answer,
        item_id=response.item_id,
        subject=response.subject,
        skill=response.skill,
        reference_answer=response.reference_answer,
        is_correct=response.is_correct if response.HasField("is_correct") else None,
        score=_score(response),
        teacher_feedback=response.teacher_feedback,
    )


def _overall_score(data: pb.BaselineData) -> float | None:
    return data.overall_score if data.HasField("overall_score") else None


def _score(response: pb.BaselineResponse) -> float | None:
    return response.score if response.HasField("score") else None
