"""Estimates: when a clone runs and when it completes, from the clones before it and from how long clones took.

A clone's time grows with its responses, because each is distilled and trained on. So the pace is in seconds per
response. Knows nothing of where that is stored.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cloning_server.clone import Clone, CloneState, Priority
from cloning_server.clones.records import Backlog

# A priority is a head start in the queue, not a queue of its own: with strict priorities, a steady stream of clones
# would keep those of lower priority waiting for ever. A head start is longer than queues are, so it acts as an order.
HEAD_START_PLACES = {Priority.LOW: -1_000, Priority.NORMAL: 0, Priority.HIGH: 1_000}
# Until the first clone has completed. The frontend was built to show 45 seconds.
FIRST_GUESS_SECONDS = 45
# Weight of the newest clone in the moving average: other hardware or another base model shows within a few clones.
NEWEST_SHARE = 0.3


def position(place: float, backlog: Backlog) -> int:
    """The position in the queue of a clone at this place, from 1; running clones do not count."""
    before = (clone_id for clone_id, other_place in backlog.places.items() if other_place < place)
    return 1 + sum(1 for clone_id in before if clone_id not in backlog.running_ids)


def seconds_until_done(place: float, responses: int, *, backlog: Backlog, parallel: int) -> int:
    """Seconds until a clone completes that waits at this place.

    Args:
        place: In the queue; the lowest runs first.
        responses: Of the clone.
        backlog: All clones that are not final.
        parallel: How many clones this server runs at once.
    """
    ahead = [
        backlog.sizes.get(clone_id, 0)
        for clone_id, other_place in backlog.places.items()
        if other_place < place or (clone_id in backlog.running_ids and other_place != place)
    ]
    # Other servers run clones too. How many they could run is unknown, so count those that they do run.
    return _estimate(backlog.pace, responses, ahead=ahead, parallel=max(parallel, len(backlog.running_ids)))


def expected_seconds(clone: Clone, backlog: Backlog) -> int:
    """Seconds that a clone takes from its start; at least 1."""
    return _estimate(backlog.pace, backlog.sizes.get(clone.clone_id, 0))


def seconds_per_clone(backlog: Backlog) -> int:
    """Seconds that an average clone takes: about when the next clone leaves a full queue."""
    return _estimate(backlog.pace, round(sum(backlog.sizes.values()) / max(1, len(backlog.sizes))))


def seconds_left(expected: float, *, progress: int, elapsed: float) -> int:
    """Seconds that a running clone is likely to take from now on; at least 1.

    The further the clone is, the more its own speed counts, and the less what was expected.

    Args:
        expected: Seconds that it was expected to take from its start.
        progress: 0 to 100.
        elapsed: Seconds since its start.
    """
    done_share = progress / 100
    # Earlier clones say that the whole takes `expected`, this one says `elapsed / done`. Weigh them by the share that
    # is left and the share that is done.
    whole = (1 - done_share) * expected + elapsed
    return max(1, math.ceil((1 - done_share) * whole))


def with_estimate(clone: Clone, backlog: Backlog, *, parallel: int, now: datetime) -> Clone:
    """The clone with its current position in the queue and the seconds that it is likely to take from now on."""
    if clone.state.is_final:
        return clone
    place = backlog.places.get(clone.clone_id)
    if clone.state is CloneState.QUEUED and place is not None and clone.clone_id not in backlog.running_ids:
        responses = backlog.sizes.get(clone.clone_id, 0)
        seconds = seconds_until_done(place, responses, backlog=backlog, parallel=parallel)
        return replace(clone, queue_position=position(place, backlog), seconds_left=seconds)
    elapsed = (now - clone.updated_time).total_seconds()
    return replace(clone, queue_position=0, seconds_left=max(1, round(clone.seconds_left - elapsed)))


def blend_pace(pace: float | None, *, seconds: float, responses: int) -> float:
    """Seconds per response after one more clone completed; `pace` is None before the first."""
    newest = seconds / responses
    return newest if pace is None else pace + NEWEST_SHARE * (newest - pace)


def _estimate(pace: float | None, responses: int, *, ahead: Sequence[int] = (), parallel: int = 1) -> int:
    """Seconds until a clone completes; at least 1. A clone that runs ahead of it counts as a whole."""
    if pace is None:
        return math.ceil(FIRST_GUESS_SECONDS * (1 + len(ahead) / parallel))
    return max(1, math.ceil(pace * (responses + sum(ahead) / parallel)))
