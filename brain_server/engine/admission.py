"""Admission: limits the requests in the engine: in total, per student, and those that anybody may send.

Anybody may leave the student out, and anybody may make up a student. So requests that name no student, and those of
students without a model, may each take a part of the places alone.

Knows nothing of models. For the event loop.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from brain_server.engine.deadline import Allowance
from mesh.errors import QueueFull, ServerDraining

# Weight of the latest request in the mean duration: a mean over about ten follows a change of load within a minute.
_LATEST_WEIGHT = 0.1
# The retry hint until the first request has ended.
_FIRST_RETRY_SECONDS = 1.0


class Admission:
    """Gives each request a place, from its arrival to its end."""

    def __init__(self, *, limit: int, student_limit: int, anonymous_limit: int, modelless_limit: int) -> None:
        """Takes the limits.

        Args:
            limit: Most requests that may wait or run at the same time. As many again may wait until it is known whether
                their students have a model.
            student_limit: Most of them that may belong to one student.
            anonymous_limit: Most of them that may name no student.
            modelless_limit: Most of them that may belong to students without a model.
        """
        self._limit = limit
        self._student_limit = student_limit
        self._anonymous_limit = anonymous_limit
        self._modelless_limit = modelless_limit
        self._present: set[Allowance] = set()
        # Of these, those whose student may be made up, and those whose student has no model.
        self._unsettled: set[Allowance] = set()
        self._modelless: set[Allowance] = set()
        self._extra: set[Allowance] = set()
        # By student; None stands for all requests that name none.
        self._caller_counts: Counter[str | None] = Counter()
        self._closing = False
        self._mean_seconds: float | None = None

    @property
    def present(self) -> int:
        """Number of requests that have a place."""
        return len(self._present)

    @contextmanager
    def extra_place(self, deadline: float | None) -> Iterator[Allowance]:
        """Holds a place beyond the limit, for work on behalf of requests that have one.

        Raises:
            ServerDraining: The engine is closing.
        """
        if self._closing:
            raise ServerDraining("the engine is closing")
        allowance = Allowance(deadline)
        self._extra.add(allowance)
        try:
            yield allowance
        finally:
            allowance.withdraw()
            self._extra.discard(allowance)

    @contextmanager
    def own_place(self) -> Iterator[Allowance]:
        """Holds a place for work of the server itself, which only the limit for all bounds.

        Raises:
            QueueFull: All places are taken.
            ServerDraining: The engine is closing.
        """
        self._require_free_place()
        with self._present_until_exit(None) as allowance:
            yield allowance

    @contextmanager
    def place(
        self, deadline: float | None, *, student_id: str | None = None, has_model: bool = False
    ) -> Iterator[Allowance]:
        """Holds a place for one request.

        The limit per student leaves places for the others, however many requests one student sends. So does the limit
        for requests that name no student, which anybody may send.

        Args:
            deadline: When the work must end, in `time.monotonic()` seconds; None for never.
            student_id: Whose request it is; None if it names no student.
            has_model: Whether the student is known to have a model. A request of another student takes no place from
                those who have one until `settle` says whose it is.

        Raises:
            QueueFull: All places are taken, or all that one student, or requests without one, may have. Its retry hint
                is the mean duration of a request, after which a place is likely to be free.
            ServerDraining: The engine is closing.
        """
        self._require_free_place()
        is_unsettled = student_id is not None and not has_model
        if is_unsettled and len(self._unsettled) >= self._limit:
            raise QueueFull(limit=self._limit, retry_seconds=self._retry_seconds)
        limit = self._anonymous_limit if student_id is None else self._student_limit
        if self._caller_counts[student_id] >= limit:
            raise QueueFull(
                limit=limit,
                retry_seconds=self._retry_seconds,
                whose="no student" if student_id is None else "one student",
            )
        self._caller_counts[student_id] += 1
        try:
            with self._present_until_exit(deadline) as allowance:
                if is_unsettled:
                    self._unsettled.add(allowance)
                yield allowance
        finally:
            self._caller_counts[student_id] -= 1
            if not self._caller_counts[student_id]:
                del self._caller_counts[student_id]

    def settle(self, allowance: Allowance, *, has_model: bool) -> None:
        """Notes whether the student of a present request has a model, once that is known.

        Raises:
            QueueFull: All places are taken, or all that students without a model may have; as for `place`.
        """
        if allowance in self._unsettled:
            self._require_free_place()
            self._unsettled.discard(allowance)
        if has_model:
            return
        if len(self._modelless) >= self._modelless_limit:
            raise QueueFull(
                limit=self._modelless_limit, retry_seconds=self._retry_seconds, whose="students without a model"
            )
        self._modelless.add(allowance)

    @contextmanager
    def _present_until_exit(self, deadline: float | None) -> Iterator[Allowance]:
        allowance = Allowance(deadline)
        self._present.add(allowance)
        try:
            yield allowance
        finally:
            allowance.withdraw()
            for requests in (self._present, self._unsettled, self._modelless):
                requests.discard(allowance)

    def _require_free_place(self) -> None:
        if self._closing:
            raise ServerDraining("the engine is closing")
        if len(self._present) - len(self._unsettled) >= self._limit:
            raise QueueFull(limit=self._limit, retry_seconds=self._retry_seconds)

    def record_duration(self, seconds: float) -> None:
        """Counts how long a request was decoded, for the retry hint of refused ones."""
        mean = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = mean + _LATEST_WEIGHT * (seconds - mean)

    def close(self) -> None:
        """Withdraws the present requests and refuses new ones."""
        self._closing = True
        for allowance in self._present | self._extra:
            allowance.withdraw()

    @property
    def _retry_seconds(self) -> float:
        return self._mean_seconds or _FIRST_RETRY_SECONDS
