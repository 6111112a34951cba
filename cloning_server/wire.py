"""Between the contract's messages and the domain, both ways. The student's name ends here: nothing behind knows it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from cloning_server.clone import Baseline, BaselineResponse, Clone, CloneState, Failure
from cloning_server.feed import Change
from cloning_server.health import HealthReport
from cloning_server.registry import Page
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import is_student_id, validate_student_id
from mesh.errors import InvalidField
from mesh.lm.profile import MAX_SUBJECT_CHARACTERS, StudentProfile, parse_profile
from mesh.rpc.errors import revive, status_of
from mesh.rpc.validation import Fields

RESPONSES_LOW, RESPONSES_HIGH = 2, 1_000
TEXT_CHARS = 4_000
NAME_CHARS = 128
PAGE_SIZE_DEFAULT, PAGE_SIZE_HIGH = 20, 100
_ID_MEANING = "1 to 64 letters, digits, dots, dashes or underscores, start with a letter or digit"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneOrder:
    """What StartClone asks for; an empty request id is none."""

    student_id: str
    baseline: Baseline
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What ListClones asks for; an empty student id is every student, an empty token the first page."""

    student_id: str
    size: int
    token: str


def order_from(request: pb.StartCloneRequest) -> CloneOrder:
    """Parses what to clone, and leaves the student's name behind.

    Raises:
        InvalidField: With every fault of the request.
    """
    fields = Fields()
    _check_id(fields, "student_id", request.student_id)
    if request.request_id:
        _check_id(fields, "request_id", request.request_id)
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
    return CloneOrder(student_id=request.student_id, baseline=baseline, request_id=request.request_id)


def clone_id_from(request: pb.GetCloneRequest | pb.WatchCloneRequest) -> str:
    """Parses which clone is meant.

    Raises:
        InvalidField: The id is malformed.
    """
    return validate_student_id(request.clone_id, field="clone_id")


def after_sequence_from(request: pb.WatchCloneRequest) -> int | None:
    """Parses what the watcher has seen; None is nothing."""
    return request.after_sequence if request.HasField("after_sequence") else None


def query_from(request: pb.ListClonesRequest) -> ListQuery:
    """Parses which clones to list.

    Raises:
        InvalidField: With every fault of the request.
    """
    fields = Fields()
    if request.student_id:
        _check_id(fields, "student_id", request.student_id)
    fields.between("page_size", request.page_size or PAGE_SIZE_DEFAULT, low=1, high=PAGE_SIZE_HIGH)
    fields.raise_if_any()
    size = request.page_size or PAGE_SIZE_DEFAULT
    return ListQuery(student_id=request.student_id, size=size, token=request.page_token)


def student_id_from(request: pb.ListStudentModelsRequest) -> str:
    """Parses whose models to list.

    Raises:
        InvalidField: The id is malformed.
    """
    return validate_student_id(request.student_id)


def started_from(clone: Clone) -> pb.StartCloneResponse:
    """Tells of a clone that was accepted."""
    return pb.StartCloneResponse(
        clone_id=clone.clone_id,
        student_id=clone.student_id,
        status="cloning_started",
        estimated_time_seconds=clone.estimated_seconds,
        state=_state_from(clone.state),
    )


def clone_from(clone: Clone, *, active_version: int) -> pb.GetCloneResponse:
    """Tells where a clone is; the active version tells whether its model still answers, 0 that none does."""
    response = pb.GetCloneResponse(
        clone_id=clone.clone_id,
        student_id=clone.student_id,
        status=clone.state.value,
        progress=clone.progress,
        message=clone.message,
        state=_state_from(clone.state),
        sequence=clone.sequence,
        attempt=clone.attempt,
        created_time=_timestamp(clone.created_time),
        updated_time=_timestamp(clone.updated_time),
    )
    if clone.manifest is not None:
        response.model.CopyFrom(_model_from(clone.manifest, active_version=active_version))
    if clone.failure is not None:
        response.error.CopyFrom(_error_from(clone.failure, clone.clone_id))
    return response


def change_from(change: Change) -> pb.WatchCloneResponse:
    """Tells of a change of a clone. Its model was the active one then."""
    clone = change.clone
    response = pb.WatchCloneResponse(
        sequence=clone.sequence,
        heartbeat=change.heartbeat,
        clone_id=clone.clone_id,
        status=clone.state.value,
        progress=clone.progress,
        message=clone.message,
        state=_state_from(clone.state),
        attempt=clone.attempt,
        time=_timestamp(clone.updated_time),
    )
    if clone.manifest is not None:
        response.model.CopyFrom(_model_from(clone.manifest, active_version=clone.manifest.ref.version))
    if clone.failure is not None:
        response.error.CopyFrom(_error_from(clone.failure, clone.clone_id))
    return response


def page_from(page: Page) -> pb.ListClonesResponse:
    """Tells of a page of clones."""
    return pb.ListClonesResponse(
        clones=[
            pb.CloneSummary(
                clone_id=clone.clone_id,
                student_id=clone.student_id,
                status=clone.state.value,
                progress=clone.progress,
                state=_state_from(clone.state),
                created_time=_timestamp(clone.created_time),
                updated_time=_timestamp(clone.updated_time),
            )
            for clone in page.clones
        ],
        next_page_token=page.next_token,
    )


def models_from(student_id: str, manifests: Sequence[Manifest], *, active_version: int) -> pb.ListStudentModelsResponse:
    """Tells of a student's versions, given oldest first."""
    return pb.ListStudentModelsResponse(
        student_id=student_id,
        active_version=active_version,
        models=[_model_from(manifest, active_version=active_version) for manifest in reversed(manifests)],
    )


def health_from(report: HealthReport) -> pb.GetHealthResponse:
    """Tells of the server's health."""
    return pb.GetHealthResponse(
        status=report.status,
        model_loaded=report.trainer.ready,
        device=report.trainer.device,
        model_name=report.trainer.model,
        gpu_available=report.trainer.gpu_available,
        reason=report.reason,
        queued_clones=report.load.queued,
        running_clones=report.load.running,
        dependencies=[
            pb.Dependency(name=part.name, available=part.available, reason=part.reason) for part in report.dependencies
        ],
    )


def _check_id(fields: Fields, name: str, value: str) -> None:
    if not is_student_id(value):
        fields.refuse(name, f"must be {_ID_MEANING} and hold no two dots in a row")


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


def _state_from(state: CloneState) -> pb.CloneState.ValueType:
    return pb.CloneState.Value(f"CLONE_STATE_{state.name}")


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _error_from(failure: Failure, clone_id: str) -> status_pb2.Status:
    # A bug is told as in any call, with the id under which the log says more: here, the clone's.
    return status_of(revive(failure.reason, failure.message, failure.facts), clone_id)


def _model_from(manifest: Manifest, *, active_version: int) -> pb.StudentModel:
    recipe = manifest.recipe
    return pb.StudentModel(
        version=manifest.ref.version,
        active=manifest.ref.version == active_version,
        sha256=manifest.sha256,
        bytes=manifest.size_bytes,
        created_time=_timestamp(manifest.created_time),
        clone_id=recipe.clone_id,
        base_model=recipe.base_model,
        base_digest=recipe.base_digest,
        lora=pb.LoraConfig(
            rank=recipe.lora.rank,
            alpha=recipe.lora.alpha,
            target_modules=recipe.lora.target_modules,
            scale=recipe.scale,
        ),
        # The names are the same on both sides; a manifest that gains one the contract lacks fails here.
        examples=pb.ExampleCounts(**asdict(recipe.examples)),
        metrics=pb.TrainingMetrics(**asdict(recipe.metrics)),
    )
