"""Trainings that run side by side in one thread and compute together.

In each round every training advances by one step, such as a scale that is tried. Trainings that then wait for the
gradient of a step get it in one pass, and those that wait for decoded replies get them in one batch. So the students of
a class learn together, a training may start or stop in any round without disturbing the others, and a long stage of one
delays the others by no more than one step.

Knows nothing of Ray, base models or how an adapter is trained.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from typing import TypeAlias

from cloning_server.compute.batch_decoding import MAX_ROWS, Decoding
from cloning_server.learning.optimizer import TrainingStep
from cloning_server.learning.training_run import ComputeRequest, ComputeResult, TrainingRun, compute
from cloning_server.training import Progress, TrainedAdapter

# For the caller of a training: what the training yields, the exception that ended it, or None at its end.
News: TypeAlias = Progress | TrainedAdapter | Exception | None


class Classroom:
    """Runs trainings in a thread of its caller.

    Args:
        thread: Has one thread, so that nothing else of torch runs during a round.
        size: How many steps of fine-tuning are computed together at most.
    """

    def __init__(self, thread: Executor, *, size: int) -> None:
        self._thread = thread
        self._size = size
        self._seats: list[_Seat] = []
        self._driver: asyncio.Task[None] | None = None

    async def attend(self, run: TrainingRun) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Runs a training among the others; closing this generator closes the training at the end of a round.

        Raises:
            Exception: Any exception of the training.
        """
        seat = _Seat(run)
        self._seats.append(seat)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive(), name="classroom")
        try:
            while (news := await seat.news.get()) is not None:
                if isinstance(news, Exception):
                    raise news
                yield news
        finally:
            seat.is_left = True

    async def _drive(self) -> None:
        try:
            while self._seats:
                seats = tuple(self._seats)
                await asyncio.get_running_loop().run_in_executor(self._thread, self._round, seats)
                for seat in seats:
                    seat.deliver()
                # Those that wait for a result are first in the next round.
                self._seats = sorted(
                    (seat for seat in self._seats if not seat.is_over), key=lambda seat: seat.request is None
                )
        except Exception as error:  # noqa: BLE001 - `attend` raises it, or would wait for ever
            seats, self._seats = tuple(self._seats), []
            for seat in seats:
                seat.news.put_nowait(error)

    def _round(self, seats: Sequence["_Seat"]) -> None:
        """Advances every seat by a step, and computes a batch of decodings and one of training steps. Never raises."""
        for seat in seats:
            if seat.request is None and not seat.is_left:
                seat.advance(None)
        waiting = [seat for seat in seats if seat.request is not None and not seat.is_left]
        steps = [seat for seat in waiting if isinstance(seat.request, TrainingStep)]
        for batch in (_decodings_of_a_batch(waiting), steps[: self._size]):
            for seat, result in zip(batch, _compute(batch), strict=True):
                seat.advance(result)
        for seat in seats:
            if seat.is_left and not seat.is_over:
                seat.end(None)


class _Seat:
    """One training in a classroom. Rounds use it in the thread; `news` and `deliver` belong to the event loop.

    Attributes:
        news: For the caller of the training.
        request: The computation that the training waits for.
        is_left: Whether the caller has closed the training.
        is_over: Whether the training has ended.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self.request: ComputeRequest | None = None
        self.is_left = False
        self.is_over = False
        self._run = run
        self._undelivered: list[News] = []

    def deliver(self) -> None:
        """Passes the news of a round on to the caller."""
        for news in self._undelivered:
            self.news.put_nowait(news)
        self._undelivered.clear()

    def advance(self, result: ComputeResult | Exception | None) -> None:
        """Runs the training to its next request or progress; an exception is raised inside it."""
        self.request = None
        try:
            item = self._run.throw(result) if isinstance(result, Exception) else self._run.send(result)
        except StopIteration:
            self.end(None)
        except Exception as error:  # noqa: BLE001 - raised again in `attend`
            self.end(error)
        else:
            if isinstance(item, TrainingStep | Decoding):
                self.request = item
            else:
                self._undelivered.append(item)

    def end(self, error: Exception | None) -> None:
        """Closes the training."""
        self.request = None
        self.is_over = True
        self._run.close()
        self._undelivered.append(error)


def _decodings_of_a_batch(seats: Sequence[_Seat]) -> list[_Seat]:
    """The first seats that wait for decoded replies, as many as fit into one batch."""
    batch: list[_Seat] = []
    rows = 0
    for seat in seats:
        if isinstance(seat.request, Decoding) and (not batch or rows + len(seat.request.openings) <= MAX_ROWS):
            batch.append(seat)
            rows += len(seat.request.openings)
    return batch


def _compute(seats: Sequence[_Seat]) -> list[ComputeResult | Exception]:
    """The results of the seats' requests; an exception where the computation failed."""
    requests = [seat.request for seat in seats if seat.request is not None]
    if not requests:
        return []
    try:
        return [*compute(requests)]
    except Exception as error:  # noqa: BLE001 - raised in the training that it concerns
        if len(seats) == 1:
            return [error]
        # A failure that one request causes, such as memory for the longest, must not end the others.
        for request in requests:
            if isinstance(request, TrainingStep):
                request.factors.vector.grad = None
        return [result for seat in seats for result in _compute([seat])]
