"""The registry: every clone, and the rules by which clones come, change and are listed.

A clone has one writer at a time, the holder of its lease: each change carries the lease's token and the number after
the last change that its writer has seen, and is refused if the lease is somebody else's or there is another change by
then. Feeds, queue and lanes move with it in the same atomic step; see `scripts`.

Knows nothing of gRPC, of how clones are run, or of the store's keys.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256

from pydantic import TypeAdapter

from cloning_server.clone import Baseline, Clone, CloneState, Terms, cancelled
from cloning_server.clones import estimates as outlook
from cloning_server.clones import pace
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.records import NOBODYS, Backlog, Effect, NewChange, NewClone
from mesh.errors import (
    CloneAlreadyRunning,
    CloneNotFound,
    ConsentRequired,
    QueueFull,
    RequestIdReused,
)
from mesh.paging import number_in, token_after

_CLONE = TypeAdapter(Clone)
_BASELINE = TypeAdapter(Baseline)
_TERMS = TypeAdapter(Terms)


class CloneOvertaken(Exception):
    """Somebody else changed the clone or took it up; whoever gets this no longer runs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to run a clone, until somebody else has it.

    Attributes:
        clone: As it was found.
        token: With which its changes are written; each lease's is larger than those before.
        expected_seconds: How long clones of this size took.
    """

    clone: Clone
    token: int
    expected_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """No clone can be claimed; before `seconds` are over, only if one is accepted. None: only then."""

    seconds: float | None


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
        require_consent: Whether a clone wants a consent.
    """

    def __init__(
        self, store: CloneStore, *, queue_limit: int = 64, parallel: int = 1, require_consent: bool = False
    ) -> None:
        self._store = store
        self._queue_limit = queue_limit
        self._parallel = parallel
        self._require_consent = require_consent

    async def start(
        self, student_id: str, baseline: Baseline, *, request_id: str = "", terms: Terms | None = None
    ) -> Clone:
        """Accepts a clone, or returns the one that the same request made before, as it was accepted then.

        Raises:
            ConsentRequired: No consent was given where one is wanted, or it has expired.
            RequestIdReused: The request id belongs to another body.
            CloneAlreadyRunning: Another clone of the student stands in the way; see `Terms.queue_behind`.
            QueueFull: Too many clones wait.
        """
        terms = terms or Terms()
        self.require_consent(student_id, terms)
        backlog = await self._store.read_backlog()
        clone = self._accepted(student_id, len(baseline.responses), terms=terms, backlog=backlog)
        clone = replace(clone, request_id=request_id)
        new = NewClone(
            clone_id=clone.clone_id,
            student_id=student_id,
            request_id=request_id,
            digest=digest(student_id, baseline, terms),
            clone=_CLONE.dump_json(clone),
            baseline=_BASELINE.dump_json(baseline),
            responses=len(baseline.responses),
            head_start=outlook.HEAD_START_PLACES[terms.priority],
            may_wait=terms.queue_behind,
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

    async def find_started(
        self, student_id: str, baseline: Baseline, *, request_id: str, terms: Terms | None = None
    ) -> Clone | None:
        """Returns the clone that the same request made before, as it was accepted then; None if it made none.

        Raises:
            RequestIdReused: The request id belongs to another body.
        """
        found = await self._store.read_request(request_id) if request_id else None
        if found is None:
            return None
        clone_id, made_of = found
        if made_of != digest(student_id, baseline, terms):
            raise RequestIdReused(request_id=request_id, clone_id=clone_id)
        return (await self.read_changes(clone_id, after=0, limit=1))[0]

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

    async def claim(self, *, seconds: float) -> Lease | Pause:
        """Leases the clone whose turn it is; one whose lease has expired comes first.

        Args:
            seconds: How long the lease lasts if it isn't renewed.
        """
        claimed = await self._store.claim(seconds=seconds)
        if claimed.clone_id is None:
            return Pause(seconds=claimed.due_seconds)
        clone = await self.find(claimed.clone_id)
        backlog = await self._store.read_backlog()
        responses = backlog.sizes.get(clone.clone_id, 0)
        expected = pace.estimate_seconds(backlog.pace, responses, ahead=(), parallel=1)
        return Lease(clone=clone, token=claimed.token, expected_seconds=expected)

    async def renew(self, lease: Lease, *, seconds: float) -> bool:
        """Makes a lease last for so long from now on; False if it is somebody else's or the clone has ended."""
        return await self._store.renew(lease.clone.clone_id, token=lease.token, seconds=seconds)

    async def change(self, clone: Clone, *, token: int | None, put_off_seconds: float | None = None) -> None:
        """Writes the clone's next change, and what follows from it; again is the same as once.

        A final one frees its student and loses its baseline.

        Args:
            clone: As of this change.
            token: Of the lease under which it is written; None writes whoever holds the clone.
            put_off_seconds: Puts the clone back to its place in the queue, for at least so long. None: it runs on.

        Raises:
            CloneOvertaken: The change is not the next one, or the lease is somebody else's.
        """
        new = NewChange(
            clone_id=clone.clone_id,
            student_id=clone.student_id,
            sequence=clone.sequence,
            clone=_CLONE.dump_json(clone),
            effect=_effect_of(clone.state, put_off=put_off_seconds is not None),
            token=token,
            delay_seconds=put_off_seconds or 0.0,
        )
        if not await self._store.change(new):
            raise CloneOvertaken(clone.clone_id)

    async def cancel(self, clone_id: str) -> Clone:
        """Ends a clone as cancelled, whoever runs it; returns it as it ended, which may be otherwise.

        Raises:
            CloneNotFound: There is none with this id.
        """
        while True:
            clone = await self.find(clone_id)
            if clone.state.is_final or await self._try_cancel(clone, token=None):
                return clone if clone.state.is_final else await self.find(clone_id)

    async def cancel_unbegun(self, clone: Clone) -> bool:
        """Cancels a clone that has never run and that nobody holds; False if it is none."""
        return not clone.attempts and await self._try_cancel(clone, token=NOBODYS)

    async def look_ahead(self, clones: Sequence[Clone]) -> list[Clone]:
        """Returns the clones with their places in the queue and the times they are likely to take from now on."""
        if all(clone.state.is_final for clone in clones):
            return list(clones)
        backlog, now = await self._store.read_backlog(), datetime.now(UTC)
        return [outlook.seen_now(clone, backlog, parallel=self._parallel, now=now) for clone in clones]

    async def list_clones(self, *, student_id: str = "", size: int = 20, token: str = "") -> Page:
        """Returns a page of clones, newest first; of one student, or of all.

        Raises:
            InvalidField: The token is not one of such a page.
        """
        below = number_in(token, _list_name(student_id)) if token else None
        # One more than asked for, to know whether a page follows.
        found = await self._store.list_numbers(student_id, below=below, limit=size + 1)
        clones = await self._store.read_latest([clone_id for clone_id, _ in found[:size]])
        return Page(
            clones=tuple(map(_CLONE.validate_json, clones)),
            next_token=token_after(found[size - 1][1], _list_name(student_id)) if len(found) > size else "",
        )

    async def record_pace(self, *, seconds: float, responses: int) -> None:
        """Lets a clone that completed count in the estimates. Two at once may lose one, which an average bears."""
        before = (await self._store.read_backlog()).pace
        await self._store.write_pace(pace.blend(before, seconds=seconds, responses=responses))

    async def load(self) -> Load:
        """Counts the clones; cheap enough for a health check."""
        queued, running = await self._store.count()
        return Load(queued=queued, running=running)

    def require_consent(self, student_id: str, terms: Terms) -> None:
        """Returns if the student's data may be used on these terms now.

        Raises:
            ConsentRequired: It may not.
        """
        consent = terms.consent
        holds = not self._require_consent if consent is None else consent.holds(datetime.now(UTC))
        if not holds:
            raise ConsentRequired(student_id=student_id)

    async def _try_cancel(self, clone: Clone, *, token: int | None) -> bool:
        try:
            await self.change(cancelled(clone, datetime.now(UTC)), token=token)
        except CloneOvertaken:
            return False
        return True

    def _accepted(self, student_id: str, responses: int, *, terms: Terms, backlog: Backlog) -> Clone:
        now = datetime.now(UTC)
        place = backlog.next_number - outlook.HEAD_START_PLACES[terms.priority]
        seconds = outlook.seconds_from(place, responses, backlog=backlog, parallel=self._parallel)
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
            estimated_seconds=seconds,
            terms=terms,
            queue_position=outlook.position(place, backlog),
            seconds_left=seconds,
        )


def digest(student_id: str, baseline: Baseline, terms: Terms | None = None) -> str:
    """sha256 over what a request asks for. Defaults are left out, so that a new field changes no old digest."""
    body = _BASELINE.dump_python(baseline, mode="json", exclude_defaults=True)
    asked = _TERMS.dump_python(terms or Terms(), mode="json", exclude_defaults=True)
    return sha256(json.dumps([student_id, body, *([asked] if asked else [])], sort_keys=True).encode()).hexdigest()


def _effect_of(state: CloneState, *, put_off: bool) -> Effect:
    if state.is_final:
        return "ends"
    return "waits" if put_off else "runs"


def _turn_seconds(backlog: Backlog) -> float:
    """About when the next clone leaves a full queue."""
    mean = round(sum(backlog.sizes.values()) / max(1, len(backlog.sizes)))
    return pace.estimate_seconds(backlog.pace, mean, ahead=(), parallel=1)


def _list_name(student_id: str) -> str:
    return f"clones of {student_id}" if student_id else "clones"
