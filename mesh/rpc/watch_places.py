"""How many watches may be open on one server: in all, and per caller, so that no caller takes all places."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mesh.errors import TooManyWatches


class WatchPlaces:
    """Counts the open watches of one server.

    Args:
        limit: Most watches.
        caller_limit: Most watches of one caller.
    """

    def __init__(self, *, limit: int, caller_limit: int) -> None:
        self._limit = limit
        self._caller_limit = caller_limit
        self._watches: Counter[str] = Counter()

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Holds a place for a watch of this caller.

        Raises:
            TooManyWatches: All places are taken, or all that one caller may take.
        """
        if self._watches.total() >= self._limit:
            raise TooManyWatches(limit=self._limit, whose="all")
        if self._watches[caller] >= self._caller_limit:
            raise TooManyWatches(limit=self._caller_limit, whose="one caller")
        self._watches[caller] += 1
        try:
            yield
        finally:
            self._watches[caller] -= 1
            if not self._watches[caller]:
                del self._watches[caller]
