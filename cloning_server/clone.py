"""A clone: one run that makes a version of a student's model. Its data, its states and their order.

Knows nothing of Redis, Ray, torch or gRPC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from mesh.adapters.manifest import Manifest
from mesh.tutoring.profile import StudentProfile


class CloneState(StrEnum):
    """Where a clone is in its life; the values are the frontend's words."""

    QUEUED = "queued"
    LOADING_BASE_MODEL = "loading_base_model"
    CREATING_ADAPTER = "creating_adapter"
    FINE_TUNING = "fine_tuning"
    OPTIMIZING = "optimizing"
    SAVING = "saving"
    DEPLOYING = "deploying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after."""
        return self in {CloneState.COMPLETED, CloneState.FAILED, CloneState.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineResponse:
    """One answer of the student and what is known of it; None is unknown, an empty string not given."""

    question: str
    student_answer: str
    item_id: str = ""
    subject: str = ""
    skill: str = ""
    reference_answer: str = ""
    is_correct: bool | None = None
    score: float | None = None
    teacher_feedback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A student's baseline assessment, and for whom it is. Never holds the student's name."""

    profile: StudentProfile
    responses: tuple[BaselineResponse, ...]
    assessment_id: str = ""
    overall_score: float | None = None


class Priority(StrEnum):
    """How soon a clone's turn comes."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """Why a student's data may be used, and until when.

    Attributes:
        basis: What it rests on, in a word; never a name.
        granted_time: When it was granted.
        expires_time: When it ends; None is never.
    """

    basis: str
    granted_time: datetime
    expires_time: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires_time is None or now < self.expires_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a clone was asked for.

    Attributes:
        priority: How soon its turn comes.
        queue_behind: Whether it may wait behind the student's earlier clone.
        base_version: Version that it trains on from; 0 is none.
        consent: What the data may be used for; None if nothing was said.
    """

    priority: Priority = Priority.NORMAL
    queue_behind: bool = False
    base_version: int = 0
    consent: Consent | None = None


class Outcome(StrEnum):
    """How an attempt ended, unless a fault ended it: then it is the fault's reason."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    HANDED_BACK = "handed_back"
    LEASE_EXPIRED = "lease_expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A try at a clone; it lasts while it has no end.

    Attributes:
        number: From 1.
        started_time: When it did its first work.
        ended_time: When it ended, or was found to have ended.
        outcome: Why: an `Outcome`, or the reason of an `AivoError`.
    """

    number: int
    started_time: datetime
    ended_time: datetime | None = None
    outcome: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a clone failed: the reason and facts of an `AivoError`."""

    reason: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A clone as of its latest change.

    Attributes:
        sequence: Number of that change, from 1.
        attempt: Which try this is, from 1.
        progress: 0 to 100; never goes back within an attempt.
        estimated_seconds: How long it was expected to take when it was accepted.
        request_id: What the caller named the request; empty if nothing.
        manifest: The adapter version that was published; None before.
        failure: Why it failed; None if it has not.
        terms: On what terms it was asked for.
        attempts: The tries that have begun, oldest first.
        queue_position: While it waits, the clones to be taken up before it and itself; else 0.
        seconds_left: How long it was expected to take from this change on; 0 if it is final.
    """

    clone_id: str
    student_id: str
    state: CloneState
    sequence: int
    attempt: int
    progress: int
    message: str
    created_time: datetime
    updated_time: datetime
    estimated_seconds: int
    request_id: str = ""
    manifest: Manifest | None = None
    failure: Failure | None = None
    terms: Terms = field(default_factory=Terms)
    attempts: tuple[Attempt, ...] = ()
    queue_position: int = 0
    seconds_left: int = 0


def with_attempt_begun(clone: Clone, now: datetime) -> Clone:
    """The clone with its current attempt among its attempts."""
    begun = Attempt(number=clone.attempt, started_time=now)
    return replace(clone, attempts=(*clone.attempts, begun))


def with_attempt_ended(clone: Clone, outcome: str, now: datetime) -> Clone:
    """The clone with its current attempt ended; as it is if none had begun."""
    *earlier, last = clone.attempts or (None,)
    if last is None or last.ended_time is not None:
        return clone
    return replace(clone, attempts=(*earlier, replace(last, ended_time=now, outcome=outcome)))


def cancelled(clone: Clone, now: datetime) -> Clone:
    """The clone after its last change, if that is its cancelling."""
    return replace(
        with_attempt_ended(clone, Outcome.CANCELLED, now),
        state=CloneState.CANCELLED,
        sequence=clone.sequence + 1,
        message="Cancelled",
        updated_time=now,
        queue_position=0,
        seconds_left=0,
    )
