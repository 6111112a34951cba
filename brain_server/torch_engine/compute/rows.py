"""Which row of the key-value cache each sequence has.

Replies that are being decoded have rows 0, 1, 2 ..., the lane, so that a step reads their keys and values as one block
without a copy. Prompts are read in rows behind the lane. When a reply leaves the lane, the last reply moves into its
row. This is bookkeeping only: the changes to make in the cache are returned as a list, to apply in order before the
next step.
"""

from dataclasses import dataclass
from typing import Protocol


class Occupant(Protocol):
    """What has a row.

    Attributes:
        row: Index of its row. `Rows` sets it.
    """

    row: int

    @property
    def dirty_tokens(self) -> int:
        """Positions of the row, from its start, that were ever written to."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wipe:
    """Clear the first `token_count` positions of a row."""

    row: int
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Move a row's first `token_count` positions to a clear row, and clear the source."""

    source: int
    target: int
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Exchange the first `token_count` positions of two rows."""

    first_row: int
    second_row: int
    token_count: int


Upkeep = Wipe | Move | Swap


class Rows:
    """The rows of one cache."""

    def __init__(self, count: int) -> None:
        self.lane: list[Occupant] = []
        self._prefill: list[Occupant] = []
        self._free_rows = set(range(count))
        self._upkeep: list[Upkeep] = []

    @property
    def free_count(self) -> int:
        """Number of rows without an occupant."""
        return len(self._free_rows)

    @property
    def prefill(self) -> list[Occupant]:
        """The occupants behind the lane, in the order in which they joined."""
        return list(self._prefill)

    def join(self, occupant: Occupant) -> None:
        """Assigns a row behind the lane. There must be a free row."""
        occupant.row = min(self._free_rows)
        self._free_rows.remove(occupant.row)
        self._prefill.append(occupant)

    def promote(self, occupant: Occupant) -> None:
        """Moves an occupant from behind the lane to the lane's end."""
        source, target = occupant.row, len(self.lane)
        self._prefill.remove(occupant)
        if source != target:
            displaced_occupant = next((candidate for candidate in self._prefill if candidate.row == target), None)
            if displaced_occupant is None:
                self._upkeep.append(Move(source=source, target=target, token_count=occupant.dirty_tokens))
                self._free_rows.remove(target)
                self._free_rows.add(source)
            else:
                dirty_tokens = max(occupant.dirty_tokens, displaced_occupant.dirty_tokens)
                self._upkeep.append(Swap(first_row=source, second_row=target, token_count=dirty_tokens))
                displaced_occupant.row = source
        occupant.row = target
        self.lane.append(occupant)

    def leave(self, occupant: Occupant) -> None:
        """Frees the occupant's row."""
        row = occupant.row
        self._upkeep.append(Wipe(row=row, token_count=occupant.dirty_tokens))
        if occupant in self._prefill:
            self._prefill.remove(occupant)
            self._free_rows.add(row)
            return
        last_occupant = self.lane.pop()
        self._free_rows.add(last_occupant.row)
        if last_occupant is not occupant:
            self._upkeep.append(Move(source=last_occupant.row, target=row, token_count=last_occupant.dirty_tokens))
            self.lane[row] = last_occupant
            last_occupant.row = row

    def clear(self, context_tokens: int) -> None:
        """Schedules a wipe of every row, over its whole length, for when their content is unknown. No row may be used.

        Args:
            context_tokens: Length of a row.
        """
        self._upkeep = [Wipe(row=row, token_count=context_tokens) for row in sorted(self._free_rows)]

    def take_upkeep(self) -> list[Upkeep]:
        """Returns the changes to make in the cache, in order, before the next step, and forgets them."""
        upkeep, self._upkeep = self._upkeep, []
        return upkeep
