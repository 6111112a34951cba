"""Admission: a bounded number of requests in the engine, and of each student's among them.

Knows nothing of models. For the event loop.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from brain_server.engine.deadline import Allowance
from mesh.errors import QueueFull, ServerDraining

# Of the latest request in the mean duration: a mean over about the last ten follows a change of load within a minute.
_LATEST_WEIGHT = 0.1
# Told to a caller who meets a full house before any request ended.
_FIRST_RETRY_SECONDS = 1.0


class Admission:
    """Places for requests, from their arrival to their end."""

    def __init__(self, *, limit: int, student_limit: int) -> None:
        """Takes how many requests may wait or run, and how many of them may be one student's."""
        self._limit = limit
        self._student_limit = student_limit
        self._present: set[Allowance] = set()
        self._of_student: Counter[str] = Counter()
        self._closing = False
        self._mean_seconds: float | None = None

    @property
    def present(self) -> int:
        """Requests that have a place."""
        return len(self._present)

    @contextmanager
    def place(self, deadline: float | None, *, student_id: str | None = None) -> Iterator[Allowance]:
        """A place for one request.

        A student who already has many is refused while there is room for others, so that no one fills the house.

        Raises:
            QueueFull: All places are taken, or all that one student may have. One is likely free after the mean
                duration of a request.
            ServerDraining: The engine is closing.
        """
        if self._closing:
            raise ServerDraining("the engine is closing")
        if len(self._present) >= self._limit:
            raise QueueFull(limit=self._limit, retry_seconds=self._retry_seconds)
        if student_id is not None and self._of_student[student_id] >= self._student_limit:
            raise QueueFull(limit=self._student_limit, retry_seconds=self._retry_seconds, of_one_student=True)
        allowance = Allowance(deadline)
        self._present.add(allowance)
        self._of_student.update([student_id] if student_id is not None else [])
        try:
            yield allowance
        finally:
            allowance.withdraw()
            self._present.discard(allowance)
            if student_id is not None:
                self._of_student[student_id] -= 1
                if not self._of_student[student_id]:
                    del self._of_student[student_id]

    def record_duration(self, seconds: float) -> None:
        """Counts how long a request was decoded, for the retry hint of refused ones."""
        mean = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = mean + _LATEST_WEIGHT * (seconds - mean)

    def close(self) -> None:
        """Withdraws what is present and refuses what comes."""
        self._closing = True
        for allowance in self._present:
            allowance.withdraw()

    @property
    def _retry_seconds(self) -> float:
        return self._mean_seconds or _FIRST_RETRY_SECONDS
