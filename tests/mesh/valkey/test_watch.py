"""Watches: heartbeats that began together spread out, and a short outage of the store ends no watch."""

import math
from types import SimpleNamespace

import pytest

from mesh.errors import AlertStoreUnavailable, CloneStoreUnavailable, Unavailable
from mesh.valkey.watch import OUTAGE_POLL_SECONDS, OUTAGE_SECONDS, Outage, Silence


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of watches, which a test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("mesh.valkey.watch.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_silences_that_begin_together_end_apart_and_none_too_late(clock: SimpleNamespace) -> None:
    silences = [Silence(longest_seconds=100) for _ in range(30)]
    ends = sorted(silence.seconds_left for silence in silences)
    assert 50 <= ends[0] < 70
    assert 80 < ends[-1] <= 100
    clock.now += 100
    assert all(silence.seconds_left <= 0 for silence in silences)
    silences[0].begin()
    assert silences[0].seconds_left >= 50


@pytest.mark.parametrize("error", [AlertStoreUnavailable, CloneStoreUnavailable])
def test_an_outage_is_tolerated_for_a_while_and_each_anew(clock: SimpleNamespace, error: type[Unavailable]) -> None:
    outage = Outage()

    def ask(*, is_up: bool) -> None:
        with outage.tolerated():
            if not is_up:
                raise error("away")

    assert outage.poll_seconds == math.inf
    for _ in range(2):
        ask(is_up=False)
        assert outage.poll_seconds == OUTAGE_POLL_SECONDS
        clock.now += OUTAGE_SECONDS
        ask(is_up=False)
        ask(is_up=True)
        assert outage.poll_seconds == math.inf
    ask(is_up=False)
    clock.now += OUTAGE_SECONDS + 1
    with pytest.raises(error):
        ask(is_up=False)
