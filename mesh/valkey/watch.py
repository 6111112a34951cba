"""What a watch does while nothing changes, and while the store does not answer.

Knows nothing of what is watched.
"""

import contextlib
import math
import random
import time
from collections.abc import Iterator

from mesh.errors import Unavailable

# Covers a restart of the store, which reads its file. A watcher that resumes loses nothing, so longer is not better.
OUTAGE_SECONDS = 20.0
# How often a watcher reads the store while it does not answer, unless a wake-up comes first.
OUTAGE_POLL_SECONDS = 1.0


class Silence:
    """The silence of a watch, which a heartbeat ends.

    How long it lasts is drawn each time, so that the heartbeats of watches that began together spread out.

    Args:
        longest_seconds: Its longest duration; the shortest is half of it.
    """

    def __init__(self, *, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self.begin()

    def begin(self) -> None:
        """Begins anew."""
        # It need not be hard to guess.
        seconds = self._longest_seconds * random.uniform(0.5, 1)  # noqa: S311
        self._ends_at = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Until a heartbeat is due; 0 or less if it is."""
        return self._ends_at - time.monotonic()


class Outage:
    """An outage of the store, as a watcher sees it."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def poll_seconds(self) -> float:
        """How long to wait before the store is read without a wake-up; for ever if it answered last time."""
        return math.inf if self._since is None else OUTAGE_POLL_SECONDS

    @contextlib.contextmanager
    def tolerated(self) -> Iterator[None]:
        """Ends the block, without an error, if the store does not answer, and has not for at most `OUTAGE_SECONDS`."""
        try:
            yield
        except Unavailable:
            now = time.monotonic()
            if self._since is None:
                self._since = now
            if now - self._since > OUTAGE_SECONDS:
                raise
        else:
            self._since = None
