"""Which row of the cache each reply has.

Replies that are being written stand in rows 0, 1, 2 ..., the lane, so that a step reads their keys and values as one
block and copies nothing. Prompts are read into rows behind the lane. When a reply leaves the lane, the last one moves
into its row. Pure bookkeeping: what has to be done to the cache is handed out as a list, to be done in its order before
the next step.
"""

from dataclasses import dataclass
from typing import Protocol


class Occupant(Protocol):
    """What has a row.

    Attributes:
        row: Set here.
        touched: Tokens that were ever written to the row.
    """

    row: int

    @property
    def touched(self) -> int:
        """Tokens that were ever written to the row."""
        ...


@dataclass(frozen=True, slots=True)
class Wipe:
    """Clear a row."""

    row: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Move:
    """Move a row to one that is clear, and clear the source."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Exchange two rows."""

    one: int
    other: int
    tokens: int


Upkeep = Wipe | Move | Swap


class Rows:
    """The rows of one cache."""

    def __init__(self, count: int) -> None:
        self.lane: list[Occupant] = []
        self._behind: list[Occupant] = []
        self._free = set(range(count))
        self._upkeep: list[Upkeep] = []

    @property
    def free(self) -> int:
        """Rows that nobody has."""
        return len(self._free)

    @property
    def behind(self) -> list[Occupant]:
        """Those behind the lane, in the order in which they joined."""
        return list(self._behind)

    def join(self, occupant: Occupant) -> None:
        """Gives a row behind the lane. There must be a free one."""
        occupant.row = min(self._free)
        self._free.remove(occupant.row)
        self._behind.append(occupant)

    def promote(self, occupant: Occupant) -> None:
        """Takes one from behind into the lane."""
        source, target = occupant.row, len(self.lane)
        self._behind.remove(occupant)
        if source != target:
            other = next((one for one in self._behind if one.row == target), None)
            if other is None:
                self._upkeep.append(Move(source, target, occupant.touched))
                self._free.remove(target)
                self._free.add(source)
            else:
                self._upkeep.append(Swap(source, target, max(occupant.touched, other.touched)))
                other.row = source
        occupant.row = target
        self.lane.append(occupant)

    def leave(self, occupant: Occupant) -> None:
        """Takes a row back."""
        row = occupant.row
        self._upkeep.append(Wipe(row, occupant.touched))
        if occupant in self._behind:
            self._behind.remove(occupant)
            self._free.add(row)
            return
        last = self.lane.pop()
        self._free.add(last.row)
        if last is not occupant:
            self._upkeep.append(Move(last.row, row, last.touched))
            self.lane[row] = last
            last.row = row

    def clear(self, tokens: int) -> None:
        """Has all rows wiped whole, as nobody knows what is in them. None may be in use."""
        self._upkeep = [Wipe(row, tokens) for row in sorted(self._free)]

    def take_upkeep(self) -> list[Upkeep]:
        """What has to be done to the cache, in this order, before the next step."""
        upkeep, self._upkeep = self._upkeep, []
        return upkeep
