"""The registry on a real Valkey, and what its tests do with it again and again."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cloning_server.clone import Clone, CloneState, Priority, Terms
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.leases import CloneLease, Pause
from cloning_server.clones.registry import Registry
from tests.cloning_server.conftest import SEALING, baseline

# Longer than any test, and shorter than anybody notices.
LONG_SECONDS, SHORT_SECONDS = 60.0, 0.05


@pytest.fixture
def registry(clones: CloneStore) -> Registry:
    return Registry.of(clones, sealing=SEALING, queue_limit=2_000)


async def claim_next(registry: Registry, *, seconds: float = LONG_SECONDS) -> CloneLease:
    """Claims the next clone, or waits for the next lease to expire."""
    while isinstance(claim := await registry.leases.claim(seconds=seconds), Pause):
        assert claim.seconds is not None, "nothing will ever be claimed"
        await asyncio.sleep(claim.seconds)
    return claim


async def accept(
    registry: Registry, student_id: str, *, priority: Priority = Priority.NORMAL, queue_behind: bool = False
) -> str:
    """Starts a clone; returns its id."""
    terms = Terms(priority=priority, queue_behind=queue_behind)
    return (await registry.intake.start(student_id, baseline(), terms=terms)).clone_id


def next_change(clone: Clone, state: CloneState = CloneState.FINE_TUNING, *, progress: int = 0) -> Clone:
    """The clone as of its next change."""
    now = datetime.now(UTC)
    return replace(clone, state=state, sequence=clone.sequence + 1, progress=progress, updated_time=now)
