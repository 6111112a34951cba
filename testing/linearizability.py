"""Checks a history of concurrent calls: could calls one after the other have had these outcomes?

A history is linearizable if each call can be given one moment between its beginning and its end, such that the calls,
in the order of these moments, do what they say to one object. The search is Wing's and Gong's ("Testing and Verifying
Concurrent Objects", 1993): it tries, as the next call, each that may come next. It remembers where it has been, as
Lowe's does ("Testing for Linearizability", 2017).

Knows nothing of what the object is.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

State = TypeVar("State")


class Effect(Enum):
    """How often a call takes effect."""

    ONCE = auto()
    # Nobody saw its outcome: it may never take effect.
    ONCE_OR_NEVER = auto()
    # It is a part of a larger call, which repeats it as often as it needs to. It may lead to finitely many states.
    ANY_NUMBER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[State]):
    """A call, and what it does to the object.

    Attributes:
        text: The call and its outcome, for people.
        start: When it began, by one clock for all calls.
        end: When its end was seen; infinity if nobody saw it, so that the call may take effect at any later time.
        states_after: Maps the state before the call to those that may follow it. None may: the outcome is impossible.
            States are hashable.
        effect: How often it takes effect.
    """

    text: str
    start: float
    end: float = math.inf
    states_after: Callable[[State], Iterable[State]]
    effect: Effect = Effect.ONCE


@dataclass(frozen=True, slots=True)
class _Configuration(Generic[State]):
    """A point of the search.

    Attributes:
        required: The calls with a certain effect that have happened, as bits.
        others: The other calls that have happened, as bits.
        latest_start: When the last of all these began.
        state: The object's.
    """

    required: int
    others: int
    latest_start: float
    state: State


def is_linearizable(calls: Sequence[Call[State]], initial: State) -> bool:
    """Whether the calls can have happened one after the other to an object that begins in this state."""
    # Whoever ended first is tried first: that is most often right.
    history = sorted(calls, key=lambda call: call.end)
    required = sum(1 << index for index, call in enumerate(history) if call.effect is Effect.ONCE)
    visited = _Visited[State]()
    pending = [_Configuration(0, 0, -math.inf, initial)]
    while pending:
        configuration = pending.pop()
        if configuration.required == required:
            return True
        pending += reversed([each for each in _following(configuration, history) if visited.add(each)])
    return False


class _Visited(Generic[State]):
    """Where the search has been, without what a better point has made needless.

    A point is as good as another with the same state and required calls if it has used no more of the other calls, and
    began its last call no later: whatever can follow the other can follow it.
    """

    def __init__(self) -> None:
        self._uses: defaultdict[tuple[int, State], list[tuple[int, float]]] = defaultdict(list)

    def add(self, point: _Configuration[State]) -> bool:
        """Returns whether the point is worth a visit, and remembers it then."""
        uses = self._uses[point.required, point.state]
        if any(others & ~point.others == 0 and start <= point.latest_start for others, start in uses):
            return False
        uses.append((point.others, point.latest_start))
        return True


def _following(before: _Configuration[State], history: Sequence[Call[State]]) -> Iterator[_Configuration[State]]:
    """The points that one more call leads to."""
    happened = before.required | before.others
    to_come = [(index, call) for index, call in enumerate(history) if not happened & (1 << index)]
    first_end = min(call.end for _, call in to_come if call.effect is Effect.ONCE)
    for index, call in to_come:
        # Neither after the end of a call that is still to come, nor before the start of one that has happened.
        if call.start > first_end or call.end < before.latest_start:
            continue
        required = before.required | (1 << index if call.effect is Effect.ONCE else 0)
        others = before.others | (1 << index if call.effect is Effect.ONCE_OR_NEVER else 0)
        for state in call.states_after(before.state):
            # A call that may never take effect, and would change nothing, need not be tried.
            if call.effect is Effect.ONCE or state != before.state:
                yield _Configuration(required, others, max(before.latest_start, call.start), state)
