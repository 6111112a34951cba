"""What goes into the clone store and comes out of it. Clones and baselines are bytes here; `registry` reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["made", "same", "reused", "running", "full"]
Effect = Literal["waits", "runs", "ends"]
# The token of a clone that nobody holds.
NOBODYS = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClone:
    """What is written when a clone is accepted.

    Attributes:
        digest: Of the request's body.
        clone: JSON.
        baseline: JSON.
        responses: How many the baseline has.
        head_start: Places before those that are accepted at the same time.
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
        sequence: Its number.
        clone: JSON.
        effect: What becomes of the clone.
        token: Of the lease under which it is written; `NOBODYS` while there is none, None whatever there is.
        delay_seconds: For one that waits, how long at least.
    """

    clone_id: str
    student_id: str
    sequence: int
    clone: bytes
    effect: Effect
    token: int | None
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What estimates are made of.

    Attributes:
        places: Of the clones that are not final: when their turns come, lowest first.
        sizes: Their responses.
        running: Those of them that run.
        next_number: That of the clone that is accepted next.
        pace: Seconds per response; None while nothing was measured.
    """

    places: Mapping[str, float]
    sizes: Mapping[str, int]
    running: frozenset[str]
    next_number: int
    pace: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Answer to a claim: the clone and the token of its lease; or nothing, and when there may be something.

    Attributes:
        clone_id: None if there is nothing.
        token: Larger than that of every lease before it; 0 if there is nothing.
        due_seconds: Until the next lease expires; None if there is none.
    """

    clone_id: str | None = None
    token: int = 0
    due_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """How much of a student was removed from the store."""

    clones: int
    request_ids: int
