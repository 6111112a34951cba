"""Intake on a real Valkey: which requests make a clone, also when many come at once."""

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cloning_server.clone import Clone, CloneState, Consent, Terms
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.intake import request_digest
from cloning_server.clones.records import NO_LEASE, NewClone, StartOutcome
from cloning_server.clones.registry import Registry
from cloning_server.clones.upkeep_store import UpkeepStore
from mesh.errors import (
    CloneAlreadyRunning,
    ConsentRequired,
    QueueFull,
    RequestIdReused,
)
from tests.cloning_server.clones.conftest import claim_next, next_change
from tests.cloning_server.conftest import SEALING, STUDENT, baseline


async def test_the_same_request_on_many_servers_at_once_makes_one_clone(clones: CloneStore) -> None:
    servers = [Registry.of(clones, sealing=SEALING) for _ in range(12)]
    clones_of_servers = await asyncio.gather(
        *(server.intake.start(STUDENT, baseline(), request_id="enrol-17") for server in servers)
    )
    assert len({clone.clone_id for clone in clones_of_servers}) == 1
    assert all(clone == clones_of_servers[0] for clone in clones_of_servers), "every caller gets the first answer"


async def test_the_same_request_is_answered_the_same_after_the_clone_went_on(registry: Registry) -> None:
    first = await registry.intake.start(STUDENT, baseline(), request_id="enrol-17")
    await registry.changes.write(next_change(first, CloneState.COMPLETED, progress=100), token=NO_LEASE)
    assert await registry.intake.start(STUDENT, baseline(), request_id="enrol-17") == first


async def test_the_same_request_at_once_with_the_erasure_of_its_student_makes_a_new_clone(
    clones: CloneStore, upkeep_store: UpkeepStore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await registry.intake.start(STUDENT, baseline(), request_id="enrol-17")
    await registry.changes.write(next_change(first, CloneState.COMPLETED, progress=100), token=NO_LEASE)
    start = clones.start

    async def start_and_erase(new: NewClone, *, queue_limit: int) -> tuple[StartOutcome, str]:
        outcome = await start(new, queue_limit=queue_limit)
        monkeypatch.undo()
        assert await upkeep_store.erase(STUDENT)
        return outcome

    monkeypatch.setattr(clones, "start", start_and_erase)
    second = await registry.intake.start(STUDENT, baseline(), request_id="enrol-17")
    assert second.clone_id != first.clone_id
    assert await registry.changes.find(second.clone_id) == second


async def test_a_request_id_with_another_body_is_refused_and_names_the_clone(registry: Registry) -> None:
    first = await registry.intake.start(STUDENT, baseline(4), request_id="enrol-17")
    with pytest.raises(RequestIdReused) as caught:
        await registry.intake.start(STUDENT, baseline(5), request_id="enrol-17")
    assert caught.value.facts == {"request_id": "enrol-17", "clone_id": first.clone_id}


async def test_of_many_clones_of_one_student_at_once_one_starts(registry: Registry) -> None:
    results = await asyncio.gather(
        *(registry.intake.start(STUDENT, baseline()) for _ in range(12)), return_exceptions=True
    )
    (clone,) = [result for result in results if isinstance(result, Clone)]
    others = [result for result in results if isinstance(result, CloneAlreadyRunning)]
    assert len(others) == 11
    assert {error.facts["clone_id"] for error in others} == {clone.clone_id}


async def test_a_student_may_start_again_after_the_final_state(registry: Registry) -> None:
    first = await registry.intake.start(STUDENT, baseline())
    await registry.changes.write(next_change(first, CloneState.FAILED), token=NO_LEASE)
    assert (await registry.intake.start(STUDENT, baseline())).clone_id != first.clone_id


async def test_no_more_clones_wait_than_the_queue_may_hold(clones: CloneStore) -> None:
    registry = Registry.of(clones, sealing=SEALING, queue_limit=5)
    results = await asyncio.gather(
        *(registry.intake.start(f"student-{n}", baseline()) for n in range(20)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert len(refused) == 15
    assert all(error.facts == {"limit": 5} and error.retry_seconds > 0 for error in refused)
    assert (await registry.listing.count()).queued_clones == 5
    # One that runs leaves a place.
    await claim_next(registry)
    await registry.intake.start("student-late", baseline())


async def test_a_consent_that_has_expired_or_is_missing_where_it_is_wanted_is_refused(clones: CloneStore) -> None:
    now = datetime.now(UTC)
    holds = Consent(basis="parental", granted_time=now, expires_time=now + timedelta(days=1))
    expired = replace(holds, expires_time=now)
    easy, strict = Registry.of(clones, sealing=SEALING), Registry.of(clones, sealing=SEALING, require_consent=True)
    for registry, consent in ((easy, expired), (strict, expired), (strict, None)):
        with pytest.raises(ConsentRequired):
            await registry.intake.start(STUDENT, baseline(), terms=Terms(consent=consent))
    clone = await strict.intake.start(STUDENT, baseline(), terms=Terms(consent=holds))
    assert (await strict.changes.find(clone.clone_id)).terms.consent == holds
    await easy.intake.start("another", baseline())


def test_the_digest_is_of_what_is_asked_for_and_nothing_else() -> None:
    digests = {request_digest(STUDENT, baseline(n)) for n in range(2, 10)} | {request_digest("another", baseline(2))}
    assert len(digests) == 9
    shuffled = list(baseline(9).responses)
    random.Random(1).shuffle(shuffled)
    assert request_digest(STUDENT, baseline(9)) == request_digest(STUDENT, replace(baseline(9)))
    assert request_digest(STUDENT, replace(baseline(9), responses=tuple(shuffled))) not in digests
