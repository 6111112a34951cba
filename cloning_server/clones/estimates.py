"""The outlook: when a clone's turn comes and when it is done, by what is before it and by how long clones took here.

Knows nothing of where that is kept.
"""

from dataclasses import replace
from datetime import datetime

from cloning_server.clone import Clone, CloneState, Priority
from cloning_server.clones import pace
from cloning_server.clones.records import Backlog

# A priority is a head start in the queue, not a queue of its own: in a strict order, clones of low priority would wait
# for ever behind a stream of others. Longer than queues are, so that it shows as an order.
HEAD_START_PLACES = {Priority.LOW: -1_000, Priority.NORMAL: 0, Priority.HIGH: 1_000}


def position(place: float, backlog: Backlog) -> int:
    """How many clones are to be taken up before the one at this place, and itself."""
    before = (clone_id for clone_id, other in backlog.places.items() if other < place)
    return 1 + sum(1 for clone_id in before if clone_id not in backlog.running)


def seconds_from(place: float, responses: int, *, backlog: Backlog, parallel: int) -> int:
    """How long until a clone of so many responses is done that waits at this place."""
    ahead = [
        backlog.sizes.get(clone_id, 0)
        for clone_id, other in backlog.places.items()
        if other < place or (clone_id in backlog.running and other != place)
    ]
    # Other servers run clones too; how many they could, only they know.
    together = max(parallel, len(backlog.running))
    return pace.estimate_seconds(backlog.pace, responses, ahead=ahead, parallel=together)


def seen_now(clone: Clone, backlog: Backlog, *, parallel: int, now: datetime) -> Clone:
    """The clone with its place in the queue and the time it is likely to take from now on."""
    if clone.state.is_final:
        return clone
    place = backlog.places.get(clone.clone_id)
    if clone.state is CloneState.QUEUED and place is not None and clone.clone_id not in backlog.running:
        left = seconds_from(place, backlog.sizes.get(clone.clone_id, 0), backlog=backlog, parallel=parallel)
        return replace(clone, queue_position=position(place, backlog), seconds_left=left)
    gone_by = (now - clone.updated_time).total_seconds()
    return replace(clone, queue_position=0, seconds_left=max(1, round(clone.seconds_left - gone_by)))
