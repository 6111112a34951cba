"""Trainings side by side: any number are stepped in one thread, and what several of them ask for is computed together.

In each round every training is moved on by one step: a trial, a measurement. Those that have come to a turn of
fine-tuning then take it together, and so those that have come to replies that must be decoded. So a class of students
learns in step, whoever joins falls in at the next round, whoever leaves is missed by nobody, and long work of one holds
up the others by no more than a step.

Knows nothing of Ray, base models or what is trained.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from cloning_server.compute.batch_decoding import MOST_ROWS, Decoding
from cloning_server.learning.optimizer import TrainingStep
from cloning_server.learning.study import Answer, Ask, Study, answers_to
from cloning_server.training import Progress, TrainedAdapter

News = Progress | TrainedAdapter | Exception | None


@dataclass(slots=True, eq=False)
class _Seat:
    """One training. `news` are for whoever awaits it: an exception if it failed, None once it is over."""

    study: Study
    news: "asyncio.Queue[News]" = field(default_factory=asyncio.Queue)
    ask: Ask | None = None
    is_left: bool = False
    is_over: bool = False


class Classroom:
    """Runs studies in a thread of somebody's.

    Args:
        thread: Has one thread, so that nothing else of torch's runs beside a round.
        size: The most turns of fine-tuning that are taken together.
    """

    def __init__(self, thread: Executor, *, size: int) -> None:
        self._thread = thread
        self._size = size
        self._seats: list[_Seat] = []
        self._driver: asyncio.Task[None] | None = None

    async def attend(self, study: Study) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Steps a study among the others until it ends; closing this closes the study at the end of a round.

        Raises:
            Exception: Whatever the study raises.
        """
        seat = _Seat(study)
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
        run = asyncio.get_running_loop().run_in_executor
        while self._seats:
            for seat, news in await run(self._thread, self._round, tuple(self._seats)):
                seat.news.put_nowait(news)
            # Those that had to wait for an answer come first in the next round.
            self._seats = sorted((one for one in self._seats if not one.is_over), key=lambda one: one.ask is None)

    def _round(self, seats: Sequence[_Seat]) -> list[tuple[_Seat, News]]:
        """Moves every seat on by a step, then those that have come to an ask by that. Never fails."""
        told = [news for seat in seats if seat.ask is None for news in _move(seat, None)]
        ready = [seat for seat in seats if seat.ask is not None and not seat.is_left]
        for together in (
            _to_decode(ready),
            [seat for seat in ready if isinstance(seat.ask, TrainingStep)][: self._size],
        ):
            for seat, answer in zip(together, _answer(together) if together else [], strict=True):
                told += _move(seat, answer)
        return [*told, *(news for seat in seats if seat.is_left for news in _end(seat, None))]


def _to_decode(seats: Sequence[_Seat]) -> list[_Seat]:
    """The first of the seats that ask for replies, as many as one batch has room for."""
    chosen: list[_Seat] = []
    rows = 0
    for seat in seats:
        if isinstance(seat.ask, Decoding) and (not chosen or rows + len(seat.ask.openings) <= MOST_ROWS):
            chosen.append(seat)
            rows += len(seat.ask.openings)
    return chosen


def _answer(seats: Sequence[_Seat]) -> list[Answer | Exception]:
    """What the seats asked for, or what kept it from being computed."""
    asks = [seat.ask for seat in seats if seat.ask is not None]
    try:
        return [*answers_to(asks)]
    except Exception as error:  # noqa: BLE001 - told to those whom it concerns
        if len(seats) == 1:
            return [error]
        # What one alone is at fault for, such as memory for the longest, must not end the others.
        for ask in asks:
            if isinstance(ask, TrainingStep):
                ask.factors.vector.grad = None
        return [answer for seat in seats for answer in _answer([seat])]


def _move(seat: _Seat, sent: Answer | Exception | None) -> list[tuple[_Seat, News]]:
    """Steps a seat's study; tells what came of it."""
    if seat.is_left:
        return []
    seat.ask = None
    try:
        step = seat.study.throw(sent) if isinstance(sent, Exception) else seat.study.send(sent)
    except StopIteration:
        return _end(seat, None)
    except Exception as error:  # noqa: BLE001 - raised again where the study is attended
        return _end(seat, error)
    if isinstance(step, TrainingStep | Decoding):
        seat.ask = step
        return []
    return [(seat, step)]


def _end(seat: _Seat, news: News) -> list[tuple[_Seat, News]]:
    if seat.is_over:
        return []
    seat.is_over = True
    seat.study.close()
    return [(seat, news)]
