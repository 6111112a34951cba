"""Between the contract's messages about clones and the domain, both ways.

What StartClone asks for is in `order_wire`, what is about a student's models in `student_wire`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.rpc import status_pb2

from cloning_server.clone import Attempt, Clone, CloneState, Consent, Failure, Priority
from cloning_server.clones.feed import Change
from cloning_server.clones.joint_feed import JointChange
from cloning_server.clones.listing import ClonePage
from cloning_server.edge.health import CloningHealthReport
from cloning_server.edge.student_wire import model_from, timestamp_from
from mesh.paging import clamp_page_size
from mesh.rpc.errors import revive, status_of

ChangeResponseT = TypeVar("ChangeResponseT", pb.WatchCloneResponse, pb.WatchClonesResponse)

_PRIORITIES: Mapping[Priority, pb.ClonePriority.ValueType] = {
    Priority.LOW: pb.CLONE_PRIORITY_LOW,
    Priority.NORMAL: pb.CLONE_PRIORITY_NORMAL,
    Priority.HIGH: pb.CLONE_PRIORITY_HIGH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What ListClones asks for; an empty student id is every student, an empty token the first page."""

    student_id: str
    size: int
    token: str


def after_sequence_from(request: pb.WatchCloneRequest | pb.WatchClonesRequest) -> int | None:
    """Converts the number of the last change that the watcher has; None if it has none."""
    return request.after_sequence if request.HasField("after_sequence") else None


def query_from(request: pb.ListClonesRequest) -> ListQuery:
    """Converts which clones to list."""
    size = clamp_page_size(request.page_size)
    return ListQuery(student_id=request.student_id, size=size, token=request.page_token)


def started_from(clone: Clone) -> pb.StartCloneResponse:
    """Converts a clone that was accepted."""
    return pb.StartCloneResponse(
        clone_id=clone.clone_id,
        student_id=clone.student_id,
        status="cloning_started",
        estimated_time_seconds=clone.estimated_seconds,
        state=_state_from(clone.state),
        queue_position=clone.queue_position or None,
    )


def cancelled_from(clone: Clone) -> pb.CancelCloneResponse:
    """Converts a clone that was cancelled."""
    return pb.CancelCloneResponse(
        clone_id=clone.clone_id,
        student_id=clone.student_id,
        status=clone.state.value,
        state=_state_from(clone.state),
        sequence=clone.sequence,
    )


def clone_from(clone: Clone, *, active_version: int | None) -> pb.GetCloneResponse:
    """Converts a clone; the active version, if there is one, shows whether its model still answers."""
    response = pb.GetCloneResponse(
        clone_id=clone.clone_id,
        student_id=clone.student_id,
        status=clone.state.value,
        progress=clone.progress,
        message=clone.message,
        state=_state_from(clone.state),
        sequence=clone.sequence,
        attempt=clone.attempt,
        create_time=timestamp_from(clone.created_time),
        update_time=timestamp_from(clone.updated_time),
        queue_position=clone.queue_position or None,
        estimated_time_seconds=_seconds_left(clone),
        attempts=map(_attempt_from, clone.attempts),
        priority=_PRIORITIES[clone.terms.priority],
        base_version=clone.terms.base_version or None,
        consent=None if clone.terms.consent is None else _consent_from(clone.terms.consent),
    )
    if clone.manifest is not None:
        response.model.CopyFrom(model_from(clone.manifest, active_version=active_version))
    if clone.failure is not None:
        response.error.CopyFrom(_error_from(clone.failure, clone.clone_id))
    return response


def change_from(change: Change, *, active_version: int | None) -> pb.WatchCloneResponse:
    """Converts a change of a clone; the active version, if there is one, shows whether its model answers."""
    return _change_from(pb.WatchCloneResponse, change, sequence=change.clone.sequence, active_version=active_version)


def joint_change_from(change: JointChange, *, active_version: int | None) -> pb.WatchClonesResponse:
    """Converts a change of one of several clones, as `change_from` does."""
    response = _change_from(pb.WatchClonesResponse, change, sequence=change.number, active_version=active_version)
    response.student_id = change.clone.student_id
    response.clone_sequence = change.clone.sequence
    return response


def page_from(page: ClonePage) -> pb.ListClonesResponse:
    """Converts a page of clones."""
    return pb.ListClonesResponse(
        clones=[
            pb.CloneSummary(
                clone_id=clone.clone_id,
                student_id=clone.student_id,
                status=clone.state.value,
                progress=clone.progress,
                state=_state_from(clone.state),
                create_time=timestamp_from(clone.created_time),
                update_time=timestamp_from(clone.updated_time),
                queue_position=clone.queue_position or None,
                estimated_time_seconds=_seconds_left(clone),
                attempt=clone.attempt,
            )
            for clone in page.clones
        ],
        next_page_token=page.next_token,
    )


def health_from(report: CloningHealthReport) -> pb.GetHealthResponse:
    """Converts the server's health."""
    return pb.GetHealthResponse(
        status=report.status,
        model_loaded=report.trainer.ready,
        device=report.trainer.device,
        model_name=report.trainer.model,
        gpu_available=report.trainer.gpu_available,
        reason=report.reason,
        queued_clones=report.counts.queued_clones,
        running_clones=report.counts.running_clones,
        dependencies=[
            pb.Dependency(name=part.name, available=part.available, reason=part.reason) for part in report.dependencies
        ],
        main_brain=report.trainer.main_brain,
    )


def _change_from(
    response_class: type[ChangeResponseT], change: Change, *, sequence: int, active_version: int | None
) -> ChangeResponseT:
    clone = change.clone
    response = response_class(
        sequence=sequence,
        heartbeat=change.heartbeat,
        clone_id=clone.clone_id,
        status=clone.state.value,
        progress=clone.progress,
        message=clone.message,
        state=_state_from(clone.state),
        attempt=clone.attempt,
        update_time=timestamp_from(clone.updated_time),
        queue_position=clone.queue_position or None,
        estimated_time_seconds=_seconds_left(clone),
    )
    if clone.manifest is not None:
        response.model.CopyFrom(model_from(clone.manifest, active_version=active_version))
    if clone.failure is not None:
        response.error.CopyFrom(_error_from(clone.failure, clone.clone_id))
    return response


def _seconds_left(clone: Clone) -> int | None:
    return None if clone.state.is_final else clone.seconds_left


def _state_from(state: CloneState) -> pb.CloneState.ValueType:
    return pb.CloneState.Value(f"CLONE_STATE_{state.name}")


def _error_from(failure: Failure, clone_id: str) -> status_pb2.Status:
    # A bug is reported as in any call, with the id that the log has: here, the clone's.
    return status_of(revive(failure.reason, failure.message, failure.facts), clone_id)


def _attempt_from(attempt: Attempt) -> pb.CloneAttempt:
    return pb.CloneAttempt(
        number=attempt.number,
        start_time=timestamp_from(attempt.started_time),
        end_time=None if attempt.ended_time is None else timestamp_from(attempt.ended_time),
        outcome=attempt.outcome,
    )


def _consent_from(consent: Consent) -> pb.Consent:
    expires = consent.expires_time
    return pb.Consent(
        basis=consent.basis,
        grant_time=timestamp_from(consent.granted_time),
        expire_time=None if expires is None else timestamp_from(expires),
    )
