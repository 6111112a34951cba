"""The running batch: replies join it and leave it between any two tokens.

The event loop decides, the torch thread computes: for each step the loop takes out what ended, lets in what waits,
and hands the thread one `Step`; no state is shared while the thread works. A prompt is read in stretches beside the
tokens of the others, so that a long one holds up nobody.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

from brain_server.adapters.host_tier import HostAdapter
from brain_server.engine.admission import FairQueue
from brain_server.engine.contract import LoadedAdapter
from brain_server.engine.deadline import Allowance, ended, within
from brain_server.torch_engine.compute.model import Placed, Step, TorchModel
from brain_server.torch_engine.compute.rows import Rows
from brain_server.torch_engine.compute.sequences import ReplyTask, Task
from brain_server.torch_engine.compute.slot_tables import SlotWeights
from brain_server.torch_engine.slots import Lease, Slots
from mesh.errors import AdapterCorrupt, AivoError, ServerDraining
from mesh.log import get_logger

_log = get_logger(__name__)


class NotFinite(Exception):
    """The base model computes NaN or infinity: its weights are broken."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A task on its way through the batch.

    Attributes:
        task: Changed by the torch thread during a step, and by nobody else.
        adapter: Decodes; None for the base model.
        allowance: How long it may go on.
        key: Whose turn it takes.
        row: While it has one.
        joined_at: When it got its row, in `time.monotonic()` seconds.
        pieces: The reply as it comes; None ends it.
        ended: Done once the task has left the batch; holds the error that ended it, if one did.
    """

    task: Task
    adapter: HostAdapter[SlotWeights] | None
    allowance: Allowance
    key: Hashable
    row: int = -1
    lease: Lease | None = None
    joined_at: float = 0.0
    pieces: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def touched(self) -> int:
        """See `brain_server.torch_engine.compute.rows.Occupant`."""
        return self.task.touched

    @property
    def placed(self) -> Placed:
        """Its next token in a step."""
        return Placed(task=self.task, row=self.row, slot=self.lease.slot if self.lease else None)


class Batch:
    """Runs tasks on a model, many at once. For the event loop."""

    def __init__(
        self, model: TorchModel, thread: ThreadPoolExecutor, *, rows: int, slots: int, reading_tokens: int
    ) -> None:
        """Begins with nothing to do.

        Args:
            model: Computes, on the thread alone.
            thread: The torch thread.
            rows: Tasks at the same time, as many as the model has.
            slots: As many as the model has.
            reading_tokens: Tokens of prompts that are read in one step, beside a token for each reply.
        """
        self.slots = Slots(slots)
        self._model = model
        self._thread = thread
        self._rows = Rows(rows)
        self._reading_tokens = reading_tokens
        self._waiting: FairQueue[Ticket] = FairQueue()
        self._work = asyncio.Event()
        self._numbers = itertools.count()
        self._step_began_at: float | None = None
        self._loop = asyncio.create_task(self._run(), name="run the batch")

    @property
    def waiting(self) -> int:
        """Tasks without a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Tasks with a row."""
        return len(self._tickets())

    @property
    def step_seconds(self) -> float:
        """How long the current step has been going on; 0 between steps."""
        began_at = self._step_began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    def submit(
        self, task: Task, *, adapter: HostAdapter[SlotWeights] | None, allowance: Allowance, student_id: str | None
    ) -> Ticket:
        """Lets a task wait for its turn. Whoever submits it calls `release` in the end, whatever happens."""
        # Those who name no student are not one student: each takes a turn of its own.
        key: Hashable = student_id if student_id is not None else next(self._numbers)
        ticket = Ticket(task=task, adapter=adapter, allowance=allowance, key=key)
        if self._loop.done():
            self._end(ticket, ServerDraining("the engine is closing"))
        else:
            self._waiting.push(ticket, key=key)
            self._work.set()
        return ticket

    async def pieces(self, ticket: Ticket) -> AsyncGenerator[str, None]:
        """The reply as it comes. Raises what ended the task, if it did not come to its end."""
        while (piece := await within(ticket.pieces.get(), ticket.allowance)) is not None:
            yield piece
        await ticket.ended

    async def release(self, ticket: Ticket) -> None:
        """Ends a task if need be, and returns when it has left the batch: its row, its slot and its cache are free."""
        ticket.allowance.withdraw()
        if self._waiting.discard(ticket, key=ticket.key):
            self._end(ticket, ServerDraining("nobody waits for it"))
        self._work.set()
        await ended(ticket.ended)

    def evict(self, student_id: str) -> list[LoadedAdapter]:
        """Drops a student's adapters from the slots, which are wiped before anything else is decoded."""
        dropped = self.slots.evict(student_id)
        self._work.set()
        return dropped

    async def close(self) -> None:
        """Ends all tasks, and returns when the torch thread is at rest."""
        self._loop.cancel()
        await ended(self._loop)
        for ticket in self._tickets():
            self._leave(ticket, ServerDraining("the engine is closing"))
        while self._waiting:
            self._end(self._waiting.pop(), ServerDraining("the engine is closing"))

    async def _run(self) -> None:
        while True:
            step = self._next_step()
            if step.empty:
                self._work.clear()
                await self._work.wait()
                continue
            await self._compute(step)
            # A step without tasks takes no time, and the others on the loop want some.
            await asyncio.sleep(0)

    async def _compute(self, step: Step) -> None:
        tasks = [one.task for one in (*step.lane, *step.reading)]
        self._step_began_at = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._model.run, step)
        try:
            broken = await asyncio.shield(running)
        except asyncio.CancelledError:
            await ended(running)
            raise
        except Exception as error:  # noqa: BLE001 - the next step may work, as after running out of memory
            _log.exception("step_failed", tasks=len(tasks))
            self._start_over(error)
        else:
            self._settle({task: NotFinite() for task in broken})
        finally:
            self._step_began_at = None

    def _settle(self, errors: dict[Task, Exception]) -> None:
        for ticket in self._tickets():
            task = ticket.task
            if isinstance(task, ReplyTask) and task.pieces:
                ticket.pieces.put_nowait("".join(task.pieces))
                task.pieces.clear()
            if error := errors.get(task):
                self._leave(ticket, _explained(error, ticket))
            elif task.done:
                self._leave(ticket, None)

    def _start_over(self, error: Exception) -> None:
        """Ends all that runs: nobody knows how far the step came, and so what is in which row and slot."""
        for ticket in self._tickets():
            self._leave(ticket, error)
        self.slots.clear()
        self._rows.clear(self._model.context_tokens)

    def _next_step(self) -> Step:
        for ticket in self._tickets():
            if error := _refusal(ticket.allowance):
                self._leave(ticket, error)
        self._promote()
        self._admit()
        loads, wipes = self.slots.take_upkeep()
        return Step(
            upkeep=self._rows.take_upkeep(),
            loads={slot: adapter.content for slot, adapter in loads.items()},
            wipes=wipes,
            lane=[ticket.placed for ticket in self._lane],
            reading=self._reading(),
        )

    def _promote(self) -> None:
        for ticket in self._behind:
            if ticket.task.writing:
                self._rows.promote(ticket)

    def _admit(self) -> None:
        while self._rows.free and self._waiting:
            ticket = self._waiting.pop()
            if error := _refusal(ticket.allowance):
                self._end(ticket, error)
                continue
            if ticket.adapter is not None:
                ticket.lease = self.slots.lease(ticket.adapter)
            ticket.joined_at = time.monotonic()
            self._rows.join(ticket)

    def _reading(self) -> list[Placed]:
        left = self._reading_tokens
        reading = []
        for ticket in self._behind:
            if left <= 0:
                break
            task = ticket.task
            # What wants all its logits is a few tokens, and read whole.
            count = len(task.pending) if len(task.wanted) > 1 else min(len(task.pending), left)
            left -= count
            slot = ticket.lease.slot if ticket.lease else None
            reading.append(Placed(task=task, row=ticket.row, slot=slot, count=count))
        return reading

    def _leave(self, ticket: Ticket, error: Exception | None) -> None:
        self._rows.leave(ticket)
        if ticket.lease is not None:
            self.slots.release(ticket.lease)
            ticket.lease = None
        self._end(ticket, error)

    def _end(self, ticket: Ticket, error: Exception | None) -> None:
        ticket.pieces.put_nowait(None)
        if error is None:
            ticket.ended.set_result(None)
        else:
            ticket.ended.set_exception(error)

    def _tickets(self) -> Sequence[Ticket]:
        return [*self._lane, *self._behind]

    @property
    def _lane(self) -> list[Ticket]:
        return cast("list[Ticket]", self._rows.lane)

    @property
    def _behind(self) -> list[Ticket]:
        return cast("list[Ticket]", self._rows.behind)


def _refusal(allowance: Allowance) -> AivoError | None:
    try:
        allowance.check()
    except AivoError as error:
        return error
    return None


def _explained(error: Exception, ticket: Ticket) -> Exception:
    if isinstance(error, NotFinite) and ticket.adapter is not None:
        ref = ticket.adapter.manifest.ref
        return AdapterCorrupt(
            f"{ref} makes numbers that are not finite", student_id=ref.student_id, version=ref.version
        )
    return error
