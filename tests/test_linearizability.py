"""The check of histories, on a counter that can be read: what it accepts, and what it rejects."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing.linearizability import Call, Effect, is_linearizable


def add(start: float, end: float, *, effect: Effect = Effect.ONCE) -> Call[int]:
    return Call(text="add", start=start, end=end, states_after=lambda value: [value + 1], effect=effect)


def add_unseen(start: float, end: float = math.inf) -> Call[int]:
    """An addition whose outcome nobody saw."""
    return add(start, end, effect=Effect.ONCE_OR_NEVER)


def fill(start: float, end: float) -> Call[int]:
    """Several additions in one, none of them beyond three."""
    return Call(
        text="fill",
        start=start,
        end=end,
        states_after=lambda value: [min(value + 1, 3)],
        effect=Effect.ANY_NUMBER,
    )


def read(start: float, end: float, value: int) -> Call[int]:
    return Call(
        text=f"read {value}",
        start=start,
        end=end,
        states_after=lambda current: [current] if current == value else [],
    )


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [add(0, 1), read(2, 3, 1)],
        # At the same time: either may come first.
        [add(0, 9), read(1, 2, 0), read(3, 4, 1)],
        [add(0, 9), read(1, 2, 1)],
        # What nobody saw takes effect much later, or never.
        [add_unseen(0), read(1, 2, 0), read(3, 4, 0), read(5, 6, 1)],
        [add_unseen(0), read(1, 2, 0)],
        [add_unseen(0, 2), read(3, 4, 0)],
        [fill(0, 5), read(1, 2, 1), read(3, 4, 3), read(6, 7, 3)],
    ],
)
def test_a_history_that_some_order_explains_is_accepted(calls: list[Call[int]]) -> None:
    assert is_linearizable(calls, 0)


@pytest.mark.parametrize(
    "calls",
    [
        [add(0, 1), read(2, 3, 0)],
        # Of two reads, the later one returns the older value.
        [add(0, 9), read(1, 2, 1), read(3, 4, 0)],
        # It takes effect once at most.
        [add_unseen(0), read(1, 2, 2)],
        # It has not begun yet.
        [read(0, 1, 1), add_unseen(2)],
        # It has ended before.
        [add_unseen(0, 2), read(3, 4, 0), read(5, 6, 1)],
        [fill(0, 5), read(6, 7, 2), read(8, 9, 3)],
    ],
)
def test_a_history_that_no_order_explains_is_rejected(calls: list[Call[int]]) -> None:
    assert not is_linearizable(calls, 0)


@st.composite
def histories(draw: st.DrawFn) -> list[Call[int]]:
    """What callers of a real counter record: each call takes effect at one moment between its start and its end."""
    value, calls = 0, []
    for moment in range(draw(st.integers(1, 9))):
        start, end = moment - draw(st.floats(0, 5)), moment + draw(st.floats(0, 5))
        if draw(st.booleans()):
            value += 1
            calls.append(add(start, end) if draw(st.booleans()) else add_unseen(start))
        else:
            calls.append(read(start, end, value))
    return calls


@given(calls=histories())
def test_whatever_callers_of_a_real_counter_record_is_accepted(calls: list[Call[int]]) -> None:
    assert is_linearizable(calls, 0)


@given(calls=histories())
def test_a_value_that_the_counter_cannot_have_had_is_rejected_in_any_history(calls: list[Call[int]]) -> None:
    late = max(call.start for call in calls) + 100
    highest = sum(call.text == "add" for call in calls)
    assert not is_linearizable([*calls, read(late, late + 1, highest + 1)], 0)


def test_a_call_may_have_several_results() -> None:
    def add_either(value: int) -> Iterator[int]:
        yield value + 1
        yield value + 2

    either = Call(text="add 1 or 2", start=0, end=1, states_after=add_either)
    assert is_linearizable([either, read(2, 3, 2)], 0)
    assert not is_linearizable([either, read(2, 3, 3)], 0)
