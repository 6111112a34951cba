"""The running batch: replies join and leave it between any two tokens.

The event loop plans and the torch thread computes. For each step the loop removes what has ended, admits what waits,
and hands the thread one `BatchStep`; they share no state while the thread computes. A prompt is read in segments beside
the tokens of the other replies, so that a long prompt delays nobody.

The guard has rows of its own and waits in no queue: what it reads decides on replies that have a row, and must not wait
until one of them ends. But for two steps it lets the prompts of replies go first, so that their first tokens come
sooner: its verdict is wanted when the first sentence of a reply is whole, and that takes many more steps.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, cast

from brain_server.adapters.host_tier import HostAdapter
from brain_server.engine.contract import LoadedAdapter
from brain_server.engine.deadline import Allowance, wait_until_done, within
from brain_server.torch_engine.compute.model import TorchModel
from brain_server.torch_engine.compute.rows import Rows
from brain_server.torch_engine.compute.sequences import ReplySequence, TokenSequence
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.compute.step import BatchStep, StepRow
from brain_server.torch_engine.slots import Slots
from brain_server.torch_engine.ticket import Ticket
from brain_server.torch_engine.turns import FairQueue
from mesh.errors import AdapterCorrupt, AivoError, ModelNotLoaded, ServerDraining
from mesh.log import get_logger
from mesh.main_brain.roles import RoleName

_log = get_logger(__name__)

# How much more of the prompts a step reads while no reply waits for its next token. The default base model on two cores
# reads 218 tokens in 74 ms instead of 92, as each step passes over all weights.
_FACTOR_ALONE = 4
# How many steps the guard lets the prompts of replies go first. A reply's first sentence takes some fifteen.
_GUARD_PATIENCE_STEPS = 2


class NotFinite(Exception):
    """The base model computes NaN or infinity: its weights are broken."""


class Batch:
    """Runs many sequences at once on a model, while `run` runs. For the event loop.

    Attributes:
        slots: Which adapter has which slot.
    """

    def __init__(
        self,
        model: TorchModel,
        thread: ThreadPoolExecutor,
        *,
        rows: int,
        guard_rows: int,
        slots: int,
        prefill_tokens: int,
    ) -> None:
        """Starts with nothing to do.

        Args:
            model: Computes the steps, on the thread alone.
            thread: The torch thread.
            rows: Sequences at the same time, without the guard's.
            guard_rows: Rows for the guard alone; with `rows` as many as the model has.
            slots: As many as the model has.
            prefill_tokens: Tokens of prompts to read per step beside one token per reply; more if there are no replies.
        """
        self.slots = Slots(slots)
        self._model = model
        self._thread = thread
        self._row_count = rows + guard_rows
        self._rows = Rows(self._row_count)
        self._reply_rows = rows
        self._prefill_tokens = prefill_tokens
        self._queue: FairQueue[Ticket] = FairQueue()
        self._guard_queue: FairQueue[Ticket] = FairQueue()
        # All sequences that have not ended, wherever they are.
        self._present: set[Ticket] = set()
        self._is_running = False
        self._is_closing = False
        self._has_work = asyncio.Event()
        self._turn_numbers = itertools.count()
        self._step_started_at: float | None = None

    @property
    def running_count(self) -> int:
        """Number of sequences with a row, without the guard's."""
        return sum(ticket.role != "guard" for ticket in self._tickets())

    @property
    def step_seconds(self) -> float:
        """Duration of the current step so far; 0 between steps."""
        started_at = self._step_started_at
        return 0.0 if started_at is None else time.monotonic() - started_at

    def submit(
        self,
        sequence: TokenSequence,
        *,
        adapter: HostAdapter[SlotWeights] | None,
        role: RoleName | None = None,
        allowance: Allowance,
        student_id: str | None,
    ) -> Ticket:
        """Queues a sequence. The caller must call `release` in the end, whatever happens.

        The sequence ends with `ServerDraining` if the batch is closed, and with `ModelNotLoaded` if a bug has ended
        `run`; both also while it runs.
        """
        # Requests without a student are not one student's: each takes a turn of its own.
        turn_key: Hashable = student_id if student_id is not None else next(self._turn_numbers)
        ticket = Ticket(sequence=sequence, adapter=adapter, role=role, allowance=allowance, turn_key=turn_key)
        if not self._is_running:
            self._end(ticket, self._reason_to_stop())
        else:
            self._present.add(ticket)
            self._queue_of(ticket).push(ticket, key=turn_key)
            self._has_work.set()
        return ticket

    async def pieces(self, ticket: Ticket) -> AsyncGenerator[str, None]:
        """Yields the reply's text as it is decoded. Raises the error that ended the sequence, if one did."""
        while (piece := await within(ticket.pieces.get(), ticket.allowance)) is not None:
            yield piece
        await ticket.completion

    async def release(self, ticket: Ticket) -> None:
        """Ends a sequence if it still runs. Returns once its row, its slot and its part of the cache are free."""
        ticket.allowance.withdraw()
        if self._queue_of(ticket).discard(ticket, key=ticket.turn_key):
            self._end(ticket, ServerDraining("the caller no longer waits for the reply"))
        self._has_work.set()
        await wait_until_done(ticket.completion)

    def evict(self, student_id: str) -> list[LoadedAdapter]:
        """Drops a student's adapters from the slots, which are wiped before the next token. Returns those adapters."""
        evicted_adapters = self.slots.evict(student_id)
        self._has_work.set()
        return evicted_adapters

    def discard(self, adapter: HostAdapter[SlotWeights]) -> None:
        """Drops an adapter that left host memory from its slot too, which is wiped before the next token."""
        self.slots.drop(adapter.identity)
        self._has_work.set()

    def close(self) -> None:
        """Says that the end of `run`, which follows, is orderly."""
        self._is_closing = True

    async def run(self) -> NoReturn:
        """Runs sequences until it is cancelled, and ends once the torch thread is idle. Then every sequence has ended.

        May run again after a bug has ended it.
        """
        self._is_running = True
        try:
            while True:
                step = self._next_step()
                if step.is_empty:
                    self._has_work.clear()
                    await self._has_work.wait()
                    continue
                await self._compute(step)
                # A step without rows takes no time; this lets other tasks run.
                await asyncio.sleep(0)
        finally:
            self._is_running = False
            self._queue, self._guard_queue = FairQueue(), FairQueue()
            self._start_over(tuple(self._present), self._reason_to_stop())

    async def _compute(self, step: BatchStep) -> None:
        self._step_started_at = time.monotonic()
        result = asyncio.get_running_loop().run_in_executor(self._thread, self._model.run, step)
        try:
            broken_sequences = await asyncio.shield(result)
        except asyncio.CancelledError:
            await wait_until_done(result)
            raise
        except Exception as error:  # noqa: BLE001 - the next step may work, as after running out of memory
            _log.exception("step_failed", sequences=len(step.rows))
            self._start_over(self._tickets(), error)
        else:
            self._settle(broken_sequences)
        finally:
            self._step_started_at = None

    def _settle(self, broken_sequences: Sequence[TokenSequence]) -> None:
        """Passes on the text of a step, and ends the sequences that finished or broke."""
        for ticket in self._tickets():
            sequence = ticket.sequence
            if isinstance(sequence, ReplySequence) and sequence.pieces:
                ticket.pieces.put_nowait("".join(sequence.pieces))
                sequence.pieces.clear()
            if sequence in broken_sequences:
                self._leave(ticket, _not_finite_error(ticket))
            elif sequence.is_finished:
                self._leave(ticket, None)

    def _start_over(self, tickets: Sequence[Ticket], error: Exception) -> None:
        """Ends these sequences, all that have a row among them, and forgets what rows and slots hold.

        How far the latest step came is unknown, and after a bug also whether rows and slots are booked as they are.
        """
        for ticket in tickets:
            ticket.lease = None
            self._end(ticket, error)
        self.slots.clear()
        self._rows = Rows(self._row_count)
        self._rows.clear(self._model.context_tokens)

    def _reason_to_stop(self) -> AivoError:
        if self._is_closing:
            return ServerDraining("the engine is closing")
        return ModelNotLoaded("the engine crashed; GetHealth says whether it starts again")

    def _next_step(self) -> BatchStep:
        for ticket in self._tickets():
            if error := _refusal(ticket.allowance):
                self._leave(ticket, error)
        self._promote()
        self._admit()
        loads, wipes = self.slots.take_upkeep()
        return BatchStep(
            upkeep=self._rows.take_upkeep(),
            loads={slot: adapter.content for slot, adapter in loads.items()},
            wipes=wipes,
            lane=[ticket.step_row() for ticket in self._lane],
            prefill=self._next_prefill(),
        )

    def _promote(self) -> None:
        for ticket in self._prefill:
            if ticket.sequence.is_decoding:
                self._rows.promote(ticket)

    def _admit(self) -> None:
        while self._rows.free_count and self._guard_queue:
            self._join(self._guard_queue.pop())
        while self._rows.free_count and self._queue and self.running_count < self._reply_rows:
            self._join(self._queue.pop())

    def _join(self, ticket: Ticket) -> None:
        if error := _refusal(ticket.allowance):
            self._end(ticket, error)
            return
        if ticket.adapter is not None:
            ticket.lease = self.slots.lease(ticket.adapter)
        ticket.joined_at = time.monotonic()
        self._rows.join(ticket)

    def _next_prefill(self) -> list[StepRow]:
        """Returns what to read beside one token per reply: the rest of forced text, then prompts."""
        budget = self._prefill_tokens if self._lane else self._prefill_tokens * _FACTOR_ALONE
        step_rows = []
        for ticket in self._lane:
            if budget > 0 and len(ticket.sequence.next_tokens) > 1:
                token_count = min(len(ticket.sequence.next_tokens) - 1, budget)
                budget -= token_count
                step_rows.append(ticket.step_row(first=1, token_count=token_count))
        for ticket in self._prompts_to_read():
            if budget <= 0:
                break
            sequence = ticket.sequence
            # A sequence that needs logits of all its next tokens has few of them, and reads them in one step.
            token_count = len(sequence.next_tokens)
            if len(sequence.logit_positions) <= 1:
                token_count = min(token_count, budget)
            budget -= token_count
            step_rows.append(ticket.step_row(token_count=token_count))
        return step_rows

    def _prompts_to_read(self) -> list[Ticket]:
        """Returns whose prompts to read next, in their order; the guard's wait, unless they have waited long enough.

        The step of a reply's prompt decodes its first token, so nothing is read beside it that can wait.
        """
        waiting = [
            ticket for ticket in self._prefill if ticket.role == "guard" and ticket.waited_steps < _GUARD_PATIENCE_STEPS
        ]
        others = [ticket for ticket in self._prefill if ticket not in waiting]
        if not others:
            return waiting
        for ticket in waiting:
            ticket.waited_steps += 1
        return others

    def _leave(self, ticket: Ticket, error: Exception | None) -> None:
        self._rows.leave(ticket)
        if ticket.lease is not None:
            self.slots.release(ticket.lease)
            ticket.lease = None
        self._end(ticket, error)

    def _end(self, ticket: Ticket, error: Exception | None) -> None:
        self._present.discard(ticket)
        ticket.pieces.put_nowait(None)
        if error is None:
            ticket.completion.set_result(None)
        else:
            ticket.completion.set_exception(error)

    def _queue_of(self, ticket: Ticket) -> FairQueue[Ticket]:
        return self._guard_queue if ticket.role == "guard" else self._queue

    def _tickets(self) -> Sequence[Ticket]:
        return [*self._lane, *self._prefill]

    @property
    def _lane(self) -> list[Ticket]:
        return cast("list[Ticket]", self._rows.lane)

    @property
    def _prefill(self) -> list[Ticket]:
        return cast("list[Ticket]", self._rows.prefill)


def _refusal(allowance: Allowance) -> AivoError | None:
    """Returns the error that ends work whose allowance is over, or None while it may go on."""
    try:
        allowance.check()
    except AivoError as error:
        return error
    return None


def _not_finite_error(ticket: Ticket) -> Exception:
    """Returns the error of a sequence whose logits are not finite: its adapter's fault, or else the base model's."""
    if ticket.adapter is None:
        return NotFinite()
    ref = ticket.adapter.manifest.ref
    return AdapterCorrupt(
        f"{ref} makes the model compute numbers that are not finite", student_id=ref.student_id, version=ref.version
    )
