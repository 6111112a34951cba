"""What the clone store takes and returns. Clones are JSON here; `codec` reads and writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

# How `start` ends; see `scripts/start.lua`.
StartOutcome = Literal["made", "same", "reused", "running", "full"]
# What a change does to its clone; see `scripts/change.lua`.
Effect = Literal["waits", "runs", "ends"]
# Stands for the token of a clone without a lease.
NO_LEASE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClone:
    """A clone to accept.

    Attributes:
        digest: Of the request.
        clone: JSON.
        baseline: Sealed JSON.
        responses: Number of responses in the baseline.
        head_start: Places in the queue before clones that are accepted at the same time.
        may_wait: Whether it may wait behind the student's earlier clone.
    """

    clone_id: str
    student_id: str
    request_id: str
    digest: str
    clone: bytes
    baseline: bytes
    responses: int
    head_start: int
    may_wait: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChange:
    """A clone's next change.

    Attributes:
        sequence: Number of the change.
        clone: JSON.
        effect: What the change does to the clone.
        token: Of the writer's lease. `NO_LEASE` writes only while there is no lease; None, whatever lease there is.
        delay_seconds: How long at least a clone waits that goes back to the queue.
    """

    clone_id: str
    student_id: str
    sequence: int
    clone: bytes
    effect: Effect
    token: int | None
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChange:
    """A change as the store holds it.

    Attributes:
        number: Of the change, among the changes of all clones.
        clone: The clone as of this change, JSON.
    """

    clone_id: str
    number: int
    clone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReading:
    """What several feeds hold at one moment.

    Attributes:
        changes: In their order.
        missing_ids: Of the clones that do not exist.
        is_whole: Whether there are no more changes.
    """

    changes: Sequence[StoredChange]
    missing_ids: frozenset[str]
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The clones that are not final, and the pace: what estimates are made of.

    Attributes:
        places: Place of each clone in the queue; the lowest runs first.
        sizes: Number of responses of each clone.
        running_ids: Of the running clones.
        next_number: Number of the clone that is accepted next.
        pace: Seconds per response; None until a clone has completed.
    """

    places: Mapping[str, float]
    sizes: Mapping[str, int]
    running_ids: frozenset[str]
    next_number: int
    pace: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The answer to a claim: a clone and the token of its lease, or how long to wait.

    Attributes:
        clone_id: None if there is nothing to claim.
        token: Larger than the token of every earlier lease; 0 if there is nothing to claim.
        due_seconds: Seconds until the next lease expires; None if there is no lease.
    """

    clone_id: str | None = None
    token: int = 0
    due_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedRecords:
    """How much the clone store held of a student who was erased."""

    clones: int
    request_ids: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DueStudents:
    """The students whose time is over, and was over in an earlier turn.

    Attributes:
        total: How many students the store knows.
        before: Their latest clones were accepted before this, by the store's clock.
        due: How many they are.
        student_ids: Some of them, the longest idle first.
    """

    total: int
    before: datetime
    due: int
    student_ids: tuple[str, ...]
