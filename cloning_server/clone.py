"""A clone: one run that makes a version of a student's model. Its data, its states and their order.

Knows nothing of Redis, Ray, torch or gRPC.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Self
from unicodedata import normalize

from mesh.adapters.manifest import Manifest
from mesh.errors import AivoError
from mesh.tutoring.profile import StudentProfile

# The best score of an answer where the baseline does not tell its `max_score`.
DEFAULT_MAX_SCORE = 100.0
# Different questions that a baseline needs: one to train on, and one to hold out.
MIN_QUESTIONS = 2
# What nobody sees in a question: soft hyphens, and characters that join, separate or turn text.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


class CloneState(StrEnum):
    """The state of a clone. The values are the words that the frontend shows."""

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
        """Whether no other state can follow."""
        return self in {CloneState.COMPLETED, CloneState.FAILED, CloneState.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineResponse:
    """A student's answer to one question. None or an empty string stands for an absent value."""

    question: str
    student_answer: str
    item_id: str = ""
    subject: str = ""
    skill: str = ""
    reference_answer: str = ""
    is_correct: bool | None = None
    score: float | None = None
    teacher_feedback: str = ""

    @property
    def item(self) -> str:
        """The question as it is read, without differences of case and spacing: what looks the same is one item."""
        return " ".join(_INVISIBLE.sub("", normalize("NFC", self.question)).split()).casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A student's baseline assessment and profile. Never holds the student's name.

    Attributes:
        overall_score: Score of the whole assessment in percent.
        max_score: The best score of a response; None if the request does not tell it.
        interests: What the student likes, in a few words each. No part of the profile: prompts do not name them as the
            student's.
    """

    profile: StudentProfile
    responses: tuple[BaselineResponse, ...]
    assessment_id: str = ""
    overall_score: float | None = None
    max_score: float | None = None
    interests: tuple[str, ...] = ()

    @property
    def best_score(self) -> float:
        """The best score of a response: `max_score`, or 100."""
        return DEFAULT_MAX_SCORE if self.max_score is None else self.max_score


class Priority(StrEnum):
    """How early a clone runs, compared with other clones in the queue."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """The permission to use a student's data.

    Attributes:
        basis: The reason for it, as one word such as `parental_consent`; never a name.
        granted_time: When it was granted.
        expires_time: When it ends; None is never.
    """

    basis: str
    granted_time: datetime
    expires_time: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it has not expired yet."""
        return self.expires_time is None or now < self.expires_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a request for a clone.

    Attributes:
        priority: How early the clone runs.
        queue_behind: Whether it may wait behind the student's earlier clone.
        base_version: The version that it trains on from; 0 for a fresh adapter.
        consent: The permission to use the data; None if the request has none.
    """

    priority: Priority = Priority.NORMAL
    queue_behind: bool = False
    base_version: int = 0
    consent: Consent | None = None


class AttemptOutcome(StrEnum):
    """How an attempt ended that no error ended. The outcome of any other attempt is the error's reason."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    HANDED_BACK = "handed_back"
    LEASE_EXPIRED = "lease_expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to run a clone.

    Attributes:
        number: From 1.
        started_time: The time of its first change.
        ended_time: When it ended, or when another server noticed that it had ended; None while it runs.
        outcome: How it ended: an `AttemptOutcome`, or the reason of an `AivoError`; empty while it runs.
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

    @classmethod
    def of(cls, error: AivoError) -> Self:
        """The failure that an error is."""
        return cls(
            reason=error.reason, message=str(error), facts={name: str(fact) for name, fact in error.facts.items()}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A clone as of its latest change.

    Attributes:
        sequence: Number of that change, from 1.
        attempt: Number of the current attempt, from 1.
        progress: 0 to 100; never decreases within an attempt.
        estimated_seconds: How long it was expected to take when it was accepted.
        request_id: Id that the caller gave the request; empty if none.
        manifest: The adapter version that it committed; None before.
        failure: Why it failed; None unless it has failed.
        terms: The terms of the request.
        attempts: The attempts that have started, oldest first.
        queue_position: Position in the queue, from 1; 0 unless it waits.
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


def with_attempt_started(clone: Clone, now: datetime) -> Clone:
    """Returns the clone with its current attempt added to its attempts."""
    return replace(clone, attempts=(*clone.attempts, Attempt(number=clone.attempt, started_time=now)))


def with_attempt_ended(clone: Clone, outcome: str, now: datetime) -> Clone:
    """Returns the clone with its current attempt ended, or unchanged if no attempt runs."""
    *earlier, last = clone.attempts or (None,)
    if last is None or last.ended_time is not None:
        return clone
    return replace(clone, attempts=(*earlier, replace(last, ended_time=now, outcome=outcome)))


def as_cancelled(clone: Clone, now: datetime) -> Clone:
    """Returns the clone as cancelled: its final change."""
    return replace(
        with_attempt_ended(clone, AttemptOutcome.CANCELLED, now),
        state=CloneState.CANCELLED,
        sequence=clone.sequence + 1,
        message="Cancelled",
        updated_time=now,
        queue_position=0,
        seconds_left=0,
    )


def as_failed(clone: Clone, failure: Failure, now: datetime) -> Clone:
    """Returns the clone as failed: its final change."""
    return replace(
        with_attempt_ended(clone, failure.reason, now),
        state=CloneState.FAILED,
        sequence=clone.sequence + 1,
        message=failure.message,
        failure=failure,
        updated_time=now,
        queue_position=0,
        seconds_left=0,
    )
