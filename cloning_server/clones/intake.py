"""Intake: which requests for a clone are accepted.

Knows nothing of gRPC, of how clones run, or of the store's keys.
"""

import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256

from pydantic import TypeAdapter

from cloning_server.clone import Baseline, Clone, CloneState, Terms
from cloning_server.clones import estimates
from cloning_server.clones.changes import CloneChanges
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.codec import encode_baseline, encode_clone
from cloning_server.clones.records import Backlog, NewClone
from mesh.errors import (
    CloneAlreadyRunning,
    CloneNotFound,
    ConsentRequired,
    InvalidField,
    QueueFull,
    RequestIdReused,
    Violation,
)
from mesh.sealing.sealing import Sealing

# As `CLONE_ORDER_BYTES`.
ORDER_BYTES = 2_600_000

_BASELINE = TypeAdapter(Baseline)
_TERMS = TypeAdapter(Terms)


class Intake:
    """Accepts clones. Every method raises `CloneStoreUnavailable` while the store does not answer.

    Args:
        store: Holds the clones.
        sealing: Seals their baselines.
        queue_limit: Most clones that wait.
        parallel: How many clones this server runs at once, for estimates.
        require_consent: Whether a clone needs a consent.
        order_bytes: Most bytes of one baseline as JSON.
    """

    def __init__(
        self,
        store: CloneStore,
        *,
        sealing: Sealing,
        queue_limit: int = 64,
        parallel: int = 1,
        require_consent: bool = False,
        order_bytes: int = ORDER_BYTES,
    ) -> None:
        self._store = store
        self._sealing = sealing
        self._changes = CloneChanges(store)
        self._queue_limit = queue_limit
        self._parallel = parallel
        self._require_consent = require_consent
        self._order_bytes = order_bytes

    async def start(
        self, student_id: str, baseline: Baseline, *, request_id: str = "", terms: Terms | None = None
    ) -> Clone:
        """Accepts a clone.

        Returns:
            The clone as it was accepted; if the same request came before, the clone that it made then.

        Raises:
            ConsentRequired: A consent is needed and missing, or the consent has expired.
            InvalidField: The baseline takes too many bytes.
            RequestIdReused: Another request has this id.
            CloneNotFound: The same request came before, and the clone that it made then is lost.
            CloneAlreadyRunning: Another clone of the student must end first; see `Terms.queue_behind`.
            QueueFull: Too many clones wait.
            KeyServiceUnavailable: The baseline can't be sealed now.
        """
        terms = terms or Terms()
        check_consent(student_id, terms, required=self._require_consent)
        json_baseline = encode_baseline(baseline)
        if len(json_baseline) > self._order_bytes:
            message = f"must take at most {self._order_bytes} bytes as JSON; leave out responses, or shorten texts"
            raise InvalidField([Violation("baseline_data", message)])
        backlog = await self._store.read_backlog()
        clone = self._new_clone(student_id, len(baseline.responses), terms=terms, backlog=backlog)
        clone = replace(clone, request_id=request_id)
        new = NewClone(
            clone_id=clone.clone_id,
            student_id=student_id,
            request_id=request_id,
            digest=request_digest(student_id, baseline, terms),
            clone=encode_clone(clone),
            baseline=await self._sealing.seal(json_baseline, context=clone.clone_id),
            responses=len(baseline.responses),
            head_start=estimates.HEAD_START_PLACES[terms.priority],
            may_wait=terms.queue_behind,
        )
        return await self._accept(clone, new, backlog=backlog)

    async def find_started(
        self, student_id: str, baseline: Baseline, *, request_id: str, terms: Terms | None = None
    ) -> Clone | None:
        """Returns the clone that the same request made before, as it was accepted then.

        None if there is none, or if its student was erased since.

        Raises:
            RequestIdReused: Another request has this id.
        """
        earlier = await self._store.read_request(request_id) if request_id else None
        if earlier is None:
            return None
        clone_id, digest = earlier
        if digest != request_digest(student_id, baseline, terms):
            raise RequestIdReused(request_id=request_id, clone_id=clone_id)
        return await self._find_accepted(clone_id)

    async def _accept(self, clone: Clone, new: NewClone, *, backlog: Backlog) -> Clone:
        missing_id = ""
        while True:
            outcome, clone_id = await self._store.start(new, queue_limit=self._queue_limit)
            match outcome:
                case "made":
                    return clone
                case "same":
                    if earlier := await self._find_accepted(clone_id):
                        return earlier
                    if clone_id == missing_id:
                        # The store lost the clone and kept the request.
                        raise CloneNotFound(clone_id=clone_id)
                    # If the student was erased just now, so was the request, and it is a new one in the next turn.
                    missing_id = clone_id
                case "reused":
                    raise RequestIdReused(request_id=clone.request_id, clone_id=clone_id)
                case "running":
                    raise CloneAlreadyRunning(student_id=clone.student_id, clone_id=clone_id)
                case "full":
                    raise QueueFull(limit=self._queue_limit, retry_seconds=estimates.seconds_per_clone(backlog))

    async def _find_accepted(self, clone_id: str) -> Clone | None:
        """Returns a clone as it was accepted; None if it was erased."""
        first_changes = await self._changes.read(clone_id, after=0, limit=1)
        return first_changes[0] if first_changes else None

    def _new_clone(self, student_id: str, responses: int, *, terms: Terms, backlog: Backlog) -> Clone:
        now = datetime.now(UTC)
        place = backlog.next_number - estimates.HEAD_START_PLACES[terms.priority]
        seconds = estimates.seconds_until_done(place, responses, backlog=backlog, parallel=self._parallel)
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
            queue_position=estimates.position(place, backlog),
            seconds_left=seconds,
        )


def check_consent(student_id: str, terms: Terms, *, required: bool) -> None:
    """Returns if these terms allow the use of the student's data now.

    Raises:
        ConsentRequired: A consent is required and missing, or the consent has expired.
    """
    consent = terms.consent
    is_allowed = not required if consent is None else consent.holds(datetime.now(UTC))
    if not is_allowed:
        raise ConsentRequired(student_id=student_id)


def request_digest(student_id: str, baseline: Baseline, terms: Terms | None = None) -> str:
    """The sha256 of what a request asks for. Defaults are left out, so that a new field changes no old digest."""
    body = _BASELINE.dump_python(baseline, mode="json", exclude_defaults=True)
    conditions = _TERMS.dump_python(terms or Terms(), mode="json", exclude_defaults=True)
    parts = [student_id, body, *([conditions] if conditions else [])]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
