"""Pace: how long a clone will take, judged by those that completed here.

A clone's time grows with its responses (each is distilled and trained on), so what is kept is seconds per response.
"""

import math
from collections.abc import Sequence

# Until the first clone has completed, and what the frontend was built to show.
FIRST_GUESS_SECONDS = 45
# Weight of the newest clone in the moving average: a change of hardware or base model shows within a few clones.
NEWEST_SHARE = 0.3


def blend(pace: float | None, *, seconds: float, responses: int) -> float:
    """Seconds per response after one more clone completed; None is no clone before."""
    newest = seconds / responses
    return newest if pace is None else pace + NEWEST_SHARE * (newest - pace)


def estimate_seconds(pace: float | None, responses: int, *, ahead: Sequence[int], parallel: int) -> int:
    """How long until a clone completes that is accepted now; at least 1.

    Args:
        pace: Seconds per response; None while nothing was measured.
        responses: Of this clone.
        ahead: Responses of each clone that waits or runs before it. One that runs counts as whole.
        parallel: How many clones run at once.
    """
    if pace is None:
        return math.ceil(FIRST_GUESS_SECONDS * (1 + len(ahead) / parallel))
    return max(1, math.ceil(pace * (responses + sum(ahead) / parallel)))


def left_seconds(expected: float, *, progress: int, elapsed: float) -> int:
    """How long a clone that runs is likely to take from now on; at least 1.

    What was expected counts less, and what was measured on this clone more, the further it is.

    Args:
        expected: How long it was expected to take from its start.
        progress: How far it is, 0 to 100.
        elapsed: Seconds since its start.
    """
    done = progress / 100
    # The whole is `expected` by the clones before, `elapsed / done` by this one; mixed at the shares left and done.
    whole = (1 - done) * expected + elapsed
    return max(1, math.ceil((1 - done) * whole))
