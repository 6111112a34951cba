"""How many watches may be open on one server."""

from collections.abc import Iterator
from contextlib import contextmanager

from mesh.errors import TooManyWatches


class WatchPlaces:
    """Counts the open watches of one server.

    Args:
        limit: Most watches.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._count = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for a watch.

        Raises:
            TooManyWatches: All places are taken.
        """
        if self._count >= self._limit:
            raise TooManyWatches(limit=self._limit)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
