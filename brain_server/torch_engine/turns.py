"""Whose turn it is: students take turns, however many requests each of them has. Knows nothing of models."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue that is fair to keys: it goes round them, and takes the oldest item of each."""

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, item: T, *, key: Hashable) -> None:
        """Adds an item behind the others of its key."""
        self._items.setdefault(key, deque()).append(item)
        self._count += 1

    def pop(self) -> T:
        """Removes and returns the next item; its key then waits behind all others.

        Raises:
            IndexError: The queue is empty.
        """
        if not self._items:
            raise IndexError("the queue is empty")
        key, items = self._items.popitem(last=False)
        self._count -= 1
        item = items.popleft()
        if items:
            self._items[key] = items
        return item

    def discard(self, item: T, *, key: Hashable) -> bool:
        """Removes an item that no longer waits for its turn. Returns whether it was in the queue."""
        items = self._items.get(key)
        if items is None or item not in items:
            return False
        items.remove(item)
        self._count -= 1
        if not items:
            del self._items[key]
        return True
