"""A clone: one run that makes a version of a student's model. Its data, its states and their order.

Knows nothing of Redis, Ray, torch or gRPC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from mesh.adapters.manifest import Manifest
from mesh.lm.profile import StudentProfile


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
