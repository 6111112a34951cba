"""The feed: a clone's changes as they happen, from any one on.

Every change is in the store under its number, so any server can serve any watcher from any point.
Knows nothing of gRPC.
"""

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from cloning_server.clone import Clone
from cloning_server.clones.registry import Registry
from cloning_server.clones.wakeups import Notices
from mesh.errors import CloneNotFound, CloneStoreUnavailable, InvalidField, Violation

# A restart of the store and the reading of its file; a watcher that resumes loses nothing, so longer is not better.
OUTAGE_SECONDS = 20.0
# How often a watcher looks while the store does not answer, if no notice of its return comes first.
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The clone as of a change, or, as a sign of life, as of the last one again."""

    clone: Clone
    heartbeat: bool = False


class Feed:
    """Serves watchers.

    Args:
        registry: Where the changes are.
        notices: Tell when to look.
        heartbeat_seconds: Longest silence.
    """

    def __init__(self, registry: Registry, notices: Notices, *, heartbeat_seconds: float = 10.0) -> None:
        self._registry = registry
        self._notices = notices
        self._heartbeat_seconds = heartbeat_seconds

    async def watch(self, clone_id: str, *, after_sequence: int | None = None) -> AsyncGenerator[Change, None]:
        """Yields the current state and every later change; or, given a number, every change after that one.

        The current state and signs of life tell the queue and the time left as they are now; changes tell them as they
        were, so that every watcher sees the same. Ends after the final state; at once if that is the number given.
        Bears an outage of the store of `OUTAGE_SECONDS`.

        Raises:
            CloneNotFound: There is no such clone, or not any more.
            InvalidField: The clone has no change with this number yet: the caller can't have seen it.
            CloneStoreUnavailable: The store does not answer.
        """
        with self._notices.waiter(clone_id) as waiter:
            clone = await self._registry.find(clone_id)
            if after_sequence is not None and after_sequence > clone.sequence:
                raise InvalidField([Violation("after_sequence", f"the latest change has the number {clone.sequence}")])
            seen = clone.sequence - 1 if after_sequence is None else after_sequence
            outage = _Outage()
            silent_since = time.monotonic()
            is_now = after_sequence is None
            while True:
                for clone in await self._read_changes(clone_id, after=seen, outage=outage):
                    yield Change(clone=await self._seen_now(clone) if is_now else clone)
                    seen, silent_since, is_now = clone.sequence, time.monotonic(), False
                if clone.state.is_final:
                    return
                silence_left = silent_since + self._heartbeat_seconds - time.monotonic()
                if silence_left <= 0:
                    yield Change(clone=await self._seen_now(clone), heartbeat=True)
                    silent_since = time.monotonic()
                await waiter.wait(min(silence_left, LOOK_SECONDS) if outage.lasts else silence_left)

    async def _read_changes(self, clone_id: str, *, after: int, outage: "_Outage") -> list[Clone]:
        try:
            # The last one seen again, which is gone only if the clone is.
            changes = await self._registry.read_changes(clone_id, after=max(0, after - 1))
        except CloneStoreUnavailable:
            if outage.seconds() > OUTAGE_SECONDS:
                raise
            return []
        outage.end()
        if not changes:
            raise CloneNotFound(clone_id=clone_id)
        return [clone for clone in changes if clone.sequence > after]

    async def _seen_now(self, clone: Clone) -> Clone:
        # A sign of life is worth more than a fresh estimate.
        with contextlib.suppress(CloneStoreUnavailable):
            (clone,) = await self._registry.look_ahead([clone])
        return clone


class _Outage:
    """How long the store has not answered."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def lasts(self) -> bool:
        return self._since is not None

    def seconds(self) -> float:
        """Time since the first call of this after the last end."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since

    def end(self) -> None:
        self._since = None
