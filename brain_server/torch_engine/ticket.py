"""A sequence's ticket in the running batch: what it needs, where it is, and how its caller hears of it."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field

from brain_server.adapters.host_tier import HostAdapter
from brain_server.engine.deadline import Allowance
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.compute.step import StepRow
from brain_server.torch_engine.slots import SlotLease
from mesh.main_brain.roles import RoleName


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A sequence on its way through the batch.

    Attributes:
        sequence: Changed by the torch thread during a step, and by nobody else.
        adapter: The student's adapter that decodes; None without one.
        role: The role that reads the prompt; None without one.
        allowance: How long the work may go on.
        turn_key: Whose turn it takes in the queue.
        row: Index of its row, while it has one.
        lease: Its slot, while it has a row and an adapter.
        joined_at: When it got its row, in `time.monotonic()` seconds.
        waited_steps: Steps that read other prompts first.
        pieces: The reply's text as it is decoded; None ends it.
        completion: Done once the sequence has left the batch; holds the error that ended it, if one did.
    """

    sequence: TokenSequence
    adapter: HostAdapter[SlotWeights] | None
    role: RoleName | None
    allowance: Allowance
    turn_key: Hashable
    row: int = -1
    lease: SlotLease | None = None
    joined_at: float = 0.0
    waited_steps: int = 0
    pieces: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    completion: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def dirty_tokens(self) -> int:
        """See `brain_server.torch_engine.compute.rows.Occupant`."""
        return self.sequence.dirty_tokens

    def step_row(self, *, first: int = 0, token_count: int = 1) -> StepRow:
        """Returns its part in a step that reads so many of its next tokens, from the given one on."""
        slot = self.lease.slot if self.lease else None
        return StepRow(
            sequence=self.sequence, row=self.row, slot=slot, role=self.role, first=first, token_count=token_count
        )
