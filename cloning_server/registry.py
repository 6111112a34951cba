"""The registry: every clone, and the rules by which clones come, change and are listed.

A clone has one writer at a time: each change carries the number after the last one its writer has seen, and is refused
if there is another by then. Feeds, queue and locks move with it in the same atomic step; see `scripts`.

Knows nothing of gRPC, of how clones are run, or of the store's keys.
"""

import base64
import binascii
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from pydantic import TypeAdapter

from cloning_server import pace
from cloning_server.clone import Baseline, Clone, CloneState
from cloning_server.clone_store import Backlog, CloneStore, Effect, NewClone
from mesh.errors import CloneAlreadyRunning, CloneNotFound, InvalidField, QueueFull, RequestIdReused, Violation

_CLONE = TypeAdapter(Clone)
_BASELINE = TypeAdapter(Baseline)


class CloneOvertaken(Exception):
    """Somebody else changed the clone first; whoever gets this no longer runs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Clones, newest first, and the token of the page after; empty on the last."""

    clones: tuple[Clone, ...]
    next_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How many clones wait, and how many run."""

    queued: int
    running: int


class Registry:
    """One tenant's clones. Every method raises `CloneStoreUnavailable` while the store does not answer.

    Args:
        store: Where they are kept.
        queue_limit: Most clones that wait.
        parallel: How many clones run at once, for estimates.
    """

    def __init__(self, store: CloneStore, *, queue_limit: int = 64, parallel: int = 1) -> None:
        self._store = store
        self._queue_limit = queue_limit
        self._parallel = parallel

    async def start(self, student_id: str, baseline: Baseline, *, request_id: str = "") -> Clone:
        """Accepts a clone, or returns the one that the same request made before, as it was accepted then.

        Raises:
            RequestIdReused: The request id belongs to another body.
            CloneAlreadyRunning: The student's earlier clone has not ended.
            QueueFull: Too many clones wait.
        """
        backlog = await self._store.read_backlog()
        clone = self._accepted(student_id, baseline, request_id=request_id, backlog=backlog)
        new = NewClone(
            clone_id=clone.clone_id,
            student_id=student_id,
            request_id=request_id,
            digest=digest(student_id, baseline),
            clone=_CLONE.dump_json(clone),
            baseline=_BASELINE.dump_json(baseline),
            responses=len(baseline.responses),
        )
        outcome, clone_id = await self._store.start(new, queue_limit=self._queue_limit)
        match outcome:
            case "made":
                return clone
            case "same":
                return (await self.read_changes(clone_id, after=0, limit=1))[0]
            case "reused":
                raise RequestIdReused(request_id=request_id, clone_id=clone_id)
            case "running":
                raise CloneAlreadyRunning(student_id=student_id, clone_id=clone_id)
            case "full":
                raise QueueFull(limit=self._queue_limit, retry_seconds=_turn_seconds(backlog))

    async def find(self, clone_id: str) -> Clone:
        """Returns the clone as it is now.

        Raises:
            CloneNotFound: There is none with this id.
        """
        found = await self._store.read_latest([clone_id])
        if not found:
            raise CloneNotFound(clone_id=clone_id)
        return _CLONE.validate_json(found[0])

    async def read_changes(self, clone_id: str, *, after: int, limit: int | None = None) -> list[Clone]:
        """Returns the clone as of each change after that one, in order; none if the clone is not known."""
        changes = await self._store.read_changes(clone_id, after=after, limit=limit)
        return [_CLONE.validate_json(change) for change in changes]

    async def read_baseline(self, clone_id: str) -> Baseline:
        """Returns what the clone is made of.

        Raises:
            CloneOvertaken: The clone is final, so its baseline is gone.
        """
        baseline = await self._store.read_baseline(clone_id)
        if baseline is None:
            raise CloneOvertaken(clone_id)
        return _BASELINE.validate_json(baseline)

    async def claim(self) -> Clone | None:
        """Takes the clone that waits longest, or returns None if none waits. A claim lasts until the clone is final."""
        clone_id = await self._store.claim()
        return None if clone_id is None else await self.find(clone_id)

    async def list_claimed(self) -> list[Clone]:
        """Returns the clones that somebody runs, or ran when it ended."""
        found = await self._store.read_latest(await self._store.claimed())
        return [_CLONE.validate_json(clone) for clone in found]

    async def change(self, clone: Clone) -> None:
        """Writes the clone's next change, and what follows from its state; again is the same as once.

        A clone that is queued again gets its old place. A final one frees its student and loses its baseline.

        Raises:
            CloneOvertaken: The change is not the next one.
        """
        written = await self._store.change(
            clone.clone_id,
            clone.student_id,
            sequence=clone.sequence,
            clone=_CLONE.dump_json(clone),
            effect=_effect_of(clone.state),
        )
        if not written:
            raise CloneOvertaken(clone.clone_id)

    async def list_clones(self, *, student_id: str = "", size: int = 20, token: str = "") -> Page:
        """Returns a page of clones, newest first; of one student, or of all.

        Raises:
            InvalidField: The token is not one of such a page.
        """
        below = _number_in(token, student_id=student_id) if token else None
        # One more than asked for, to know whether a page follows.
        found = await self._store.list_numbers(student_id, below=below, limit=size + 1)
        clones = await self._store.read_latest([clone_id for clone_id, _ in found[:size]])
        return Page(
            clones=tuple(map(_CLONE.validate_json, clones)),
            next_token=_token(found[size - 1][1], student_id) if len(found) > size else "",
        )

    async def record_pace(self, *, seconds: float, responses: int) -> None:
        """Lets a clone that completed count in the estimates. Two at once may lose one, which an average bears."""
        before = (await self._store.read_backlog()).pace
        await self._store.write_pace(pace.blend(before, seconds=seconds, responses=responses))

    async def load(self) -> Load:
        """Counts the clones; cheap enough for a health check."""
        queued, running = await self._store.count()
        return Load(queued=queued, running=running)

    def _accepted(self, student_id: str, baseline: Baseline, *, request_id: str, backlog: Backlog) -> Clone:
        now = datetime.now(UTC)
        return Clone(
            clone_id=f"clone_{secrets.token_hex(8)}",
            student_id=student_id,
            state=CloneState.QUEUED,
            sequence=1,
            attempt=1,
            progress=0,
            message="Waiting for a trainer",
            created_time=now,
            updated_time=now,
            estimated_seconds=pace.estimate_seconds(
                backlog.pace, len(baseline.responses), ahead=backlog.responses, parallel=self._parallel
            ),
            request_id=request_id,
        )


def digest(student_id: str, baseline: Baseline) -> str:
    """sha256 over what a request asks for. Defaults are left out, so that a new field changes no old digest."""
    body = _BASELINE.dump_python(baseline, mode="json", exclude_defaults=True)
    return sha256(json.dumps([student_id, body], sort_keys=True).encode()).hexdigest()


def _effect_of(state: CloneState) -> Effect:
    if state.is_final:
        return "ends"
    return "waits" if state is CloneState.QUEUED else "runs"


def _turn_seconds(backlog: Backlog) -> float:
    """About when the next clone leaves a full queue."""
    mean = round(sum(backlog.responses) / max(1, len(backlog.responses)))
    return pace.estimate_seconds(backlog.pace, mean, ahead=(), parallel=1)


def _token(number: int, student_id: str) -> str:
    return base64.urlsafe_b64encode(f"{number}/{student_id}".encode()).decode()


def _number_in(token: str, *, student_id: str) -> int:
    try:
        number, _, student = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition("/")
        if student == student_id and number.isascii() and number.isdecimal():
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise InvalidField([Violation("page_token", "must be the next_page_token of a page of the same list")])
