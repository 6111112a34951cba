"""What the event loop hands to the torch thread for one step of the running batch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from brain_server.torch_engine.compute.decoder import Segment
from brain_server.torch_engine.compute.rows import Upkeep
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from mesh.main_brain.roles import RoleName


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One row's part in a step.

    Attributes:
        sequence: The sequence that has the row.
        row: Index of the row in the cache.
        slot: Slot of the student's adapter; None without one.
        role: The role that reads the tokens; None without one. A role is never in the lane, and never beside a slot.
        first: Index of the first token to read among the sequence's next tokens; those before are read in another part
            of the step.
        token_count: How many of the sequence's next tokens to read.
    """

    sequence: TokenSequence
    row: int
    slot: int | None
    role: RoleName | None = None
    first: int = 0
    token_count: int = 1

    @property
    def segment(self) -> Segment:
        """The tokens to read."""
        sequence = self.sequence
        tokens = sequence.next_tokens[self.first : self.first + self.token_count]
        return Segment(row=self.row, start=sequence.cached_tokens + self.first, tokens=tokens)

    @property
    def logit_positions(self) -> range:
        """Which of the tokens to read need logits, as indices. None do if the sequence has tokens after these."""
        if self.first + self.token_count < len(self.sequence.next_tokens):
            return range(0)
        positions = self.sequence.logit_positions
        return range(positions.start - self.first, positions.stop - self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStep:
    """The work of one step: first changes to the cache and the slots, then one pass of the model.

    Attributes:
        upkeep: Changes to the cache, in order.
        loads: Adapters to copy into slots, by slot.
        wipes: Slots to clear, before the loads.
        lane: Rows 0, 1, 2 ..., which read one token each.
        prefill: Segments of other rows, and of rows of the lane that read several tokens: those after the first.
    """

    upkeep: Sequence[Upkeep] = ()
    loads: Mapping[int, SlotWeights]
    wipes: Collection[int] = ()
    lane: Sequence[StepRow] = ()
    prefill: Sequence[StepRow] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.upkeep or self.loads or self.wipes or self.lane or self.prefill)

    @property
    def rows(self) -> Sequence[StepRow]:
        """The lane, then the prefill: the order of their tokens in the pass. A row of the lane may be in both."""
        return [*self.lane, *self.prefill]

    @property
    def logit_indices(self) -> list[int]:
        """Which tokens need logits, as indices among the tokens of all rows."""
        indices: list[int] = []
        start = 0
        for row in self.rows:
            indices += [start + position for position in row.logit_positions]
            start += row.token_count
        return indices

    @property
    def role_segments(self) -> list[tuple[slice, RoleName]]:
        """The ranges of each role's tokens among the tokens of all rows, and the role; neighbours are one range."""
        segments: list[tuple[slice, RoleName]] = []
        start = len(self.lane)
        for role, rows in groupby(self.prefill, key=lambda row: row.role):
            end = start + sum(row.token_count for row in rows)
            if role is not None:
                segments.append((slice(start, end), role))
            start = end
        return segments
