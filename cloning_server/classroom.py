"""Trainings side by side: any number are stepped in one thread, and the turns that are ready are taken together.

In each round every training is moved on by one step: a batch of distillation, a trial, a measurement. Those that have
come to a turn of fine-tuning then take it together. So a class of students learns in step, whoever joins falls in at
the next round, whoever leaves is missed by nobody, and long work of one holds up the others by no more than a step.

Knows nothing of Ray, base models or what is trained.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from cloning_server.learning import Turn, take_turns
from cloning_server.trainer import Study
from cloning_server.training import Progress, Trained

News = Progress | Trained | Exception | None


@dataclass(slots=True, eq=False)
class _Seat:
    """One training. `news` are for whoever awaits it: an exception if it failed, None once it is over."""

    study: Study
    news: "asyncio.Queue[News]" = field(default_factory=asyncio.Queue)
    turn: Turn | None = None
    is_left: bool = False
    is_over: bool = False


class Classroom:
    """Runs studies in a thread of somebody's.

    Args:
        thread: Has one thread, so that nothing else of torch's runs beside a round.
        size: The most turns that are taken together.
    """

    def __init__(self, thread: Executor, *, size: int) -> None:
        self._thread = thread
        self._size = size
        self._seats: list[_Seat] = []
        self._driver: asyncio.Task[None] | None = None

    async def attend(self, study: Study) -> AsyncGenerator[Progress | Trained, None]:
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
            # Those that had to wait for a turn come first in the next round.
            self._seats = sorted((one for one in self._seats if not one.is_over), key=lambda one: one.turn is None)

    def _round(self, seats: Sequence[_Seat]) -> list[tuple[_Seat, News]]:
        """Moves every seat on by a step, then those that have come to a turn by that. Never fails."""
        told = [news for seat in seats if seat.turn is None for news in _move(seat, None)]
        ready = [seat for seat in seats if seat.turn is not None and not seat.is_left]
        for seat, loss in zip(ready[: self._size], self._take(ready[: self._size]), strict=True):
            told += _move(seat, loss)
        return [*told, *(news for seat in seats if seat.is_left for news in _end(seat, None))]

    def _take(self, seats: Sequence[_Seat]) -> list[float | Exception]:
        """The losses of the seats' turns, or what kept a turn from being taken."""
        turns = [seat.turn for seat in seats if seat.turn is not None]
        try:
            return [*take_turns(turns)]
        except Exception as error:  # noqa: BLE001 - told to those whom it concerns
            if len(seats) == 1:
                return [error]
            # What one alone is at fault for, such as memory for the longest, must not end the others.
            for turn in turns:
                turn.factors.vector.grad = None
            return [loss for seat in seats for loss in self._take([seat])]


def _move(seat: _Seat, sent: float | Exception | None) -> list[tuple[_Seat, News]]:
    """Steps a seat's study; tells what came of it."""
    if seat.is_left:
        return []
    seat.turn = None
    try:
        step = seat.study.throw(sent) if isinstance(sent, Exception) else seat.study.send(sent)
    except StopIteration:
        return _end(seat, None)
    except Exception as error:  # noqa: BLE001 - raised again where the study is attended
        return _end(seat, error)
    if isinstance(step, Turn):
        seat.turn = step
        return []
    return [(seat, step)]


def _end(seat: _Seat, news: News) -> list[tuple[_Seat, News]]:
    if seat.is_over:
        return []
    seat.is_over = True
    seat.study.close()
    return [(seat, news)]
