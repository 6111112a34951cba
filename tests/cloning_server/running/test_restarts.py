"""Clones that a restart of the cloning server cuts off: they start again and make one version."""

import asyncio
import itertools

import pytest

from cloning_server.clone import CloneState
from testing.scripted.trainer import recipe_for, weights_for
from tests.cloning_server.conftest import (
    STUDENT,
    Cloning,
    start_clone,
    watch_all,
)
from tests.cloning_server.running.conftest import STATUSES, statuses_of


@pytest.mark.parametrize("state", [CloneState.LOADING_BASE_MODEL, CloneState.FINE_TUNING, CloneState.OPTIMIZING])
async def test_a_clone_that_a_restart_cut_off_starts_anew_and_makes_one_version(
    cloning: Cloning, state: CloneState
) -> None:
    gate = cloning.trainer.gates[state]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await gate.reached.wait()
    assert cloning.trainer.stopped_clones == [clone_id], "the server that ends stops the training"
    gate.open()
    async with cloning.serve() as stub:
        changes = await watch_all(stub, clone_id)
    assert changes[-1].status == "completed"
    assert statuses_of([change for change in changes if change.attempt == changes[-1].attempt]) == STATUSES
    for before, after in itertools.pairwise(changes):
        assert after.attempt == before.attempt or (after.status, after.progress) == ("queued", 0)
        assert after.attempt > before.attempt or after.progress >= before.progress
    assert len(await cloning.adapters.list_versions(STUDENT)) == 1


async def test_the_clones_that_a_restart_cut_off_come_before_those_that_waited(cloning: Cloning) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        cut_off, waited = await start_clone(stub, "first"), await start_clone(stub, "second")
        await gate.reached.wait()
    gate.open()
    async with cloning.serve() as stub:
        await asyncio.gather(*(watch_all(stub, clone_id) for clone_id in (cut_off, waited)))
    assert [plan.clone_id for plan in cloning.trainer.plans] == [cut_off, cut_off, waited]


async def test_a_restart_while_deploying_deploys_and_trains_no_second_time(cloning: Cloning) -> None:
    cloning.brain.hold.clear()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await cloning.brain.warm_called.wait()
    cloning.brain.hold.set()
    async with cloning.serve() as stub:
        changes = await watch_all(stub, clone_id)
    assert changes[-1].status == "completed"
    assert statuses_of([change for change in changes if change.attempt == 2]) == ["queued", "deploying", "completed"]
    assert len(cloning.trainer.plans) == 1
    assert len(await cloning.adapters.list_versions(STUDENT)) == 1


async def test_a_crash_between_publishing_and_telling_so_trains_no_second_time(cloning: Cloning) -> None:
    gate = cloning.trainer.gates[CloneState.OPTIMIZING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await gate.reached.wait()
        # What the server would have done before it died: stage, and not even move the pointer.
        (plan,) = cloning.trainer.plans
        await cloning.adapters.stage(STUDENT, weights_for(plan), recipe=recipe_for(plan))
    gate.open()
    async with cloning.serve() as stub:
        assert (await watch_all(stub, clone_id))[-1].status == "completed"
    assert len(cloning.trainer.plans) == 1
    assert len(await cloning.adapters.list_versions(STUDENT)) == 1
    active = await cloning.adapters.resolve_active(STUDENT)
    assert active is not None
