"""What the event loop hands to the torch thread for one step of the running batch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from brain_server.torch_engine.compute.decoder import Segment
from brain_server.torch_engine.compute.rows import Upkeep
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.slot_layout import SlotWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One row's part in a step.

    Attributes:
        sequence: The sequence that has the row.
        row: Index of the row in the cache.
        slot: Slot of the sequence's adapter; None for the base model.
        token_count: How many of the sequence's next tokens to read.
    """

    sequence: TokenSequence
    row: int
    slot: int | None
    token_count: int = 1

    @property
    def segment(self) -> Segment:
        """The tokens to read."""
        sequence = self.sequence
        return Segment(row=self.row, start=sequence.cached_tokens, tokens=sequence.next_tokens[: self.token_count])

    @property
    def logit_positions(self) -> range:
        """Which of the tokens to read need logits, as indices. None do if the step stops before the prompt's end."""
        reads_all = self.token_count == len(self.sequence.next_tokens)
        return self.sequence.logit_positions if reads_all else range(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStep:
    """The work of one step: first changes to the cache and the slots, then one pass of the model.

    Attributes:
        upkeep: Changes to the cache, in order.
        loads: Adapters to copy into slots, by slot.
        wipes: Slots to clear, before the loads.
        lane: Rows 0, 1, 2 ..., which read one token each.
        prefill: Other rows, which read a segment each.
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
        """The lane, then the prefill: the order of their tokens in the pass."""
        return [*self.lane, *self.prefill]
