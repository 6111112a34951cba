"""Several cloning servers on one store, and what becomes of a clone when one of them hangs, dies or shuts down."""

import asyncio
import dataclasses

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb

from cloning_server.clone import CloneState
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.leases import CloneLease
from cloning_server.clones.registry import Registry
from cloning_server.running.journal import Journal
from testing.scripted.trainer import ScriptedTrainer, recipe_for, weights_for
from tests.cloning_server.conftest import SEALING, STUDENT, Cloning, CloningStub, baseline, order, until, watch_all

# Long enough that nobody waits for one to expire within a test.
LONG_LEASE_SECONDS = 600.0


async def attempts_of(stub: CloningStub, clone_id: str) -> list[tuple[int, str]]:
    clone = await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))
    return [(attempt.number, attempt.outcome) for attempt in clone.attempts]


async def expire(cloning: Cloning, clone_id: str) -> None:
    """Ends a lease, as if the store's clock had passed its time."""
    await cloning.redis.zadd(f"{{aivo:{cloning.settings.tenant}}}:leases", {clone_id: 0})


async def test_two_servers_share_the_clones_and_run_each_once(cloning: Cloning) -> None:
    async with cloning.serve() as first_server, cloning.serve() as other:
        accepted = [
            (await stub.StartClone(order(f"student-{n}"))).clone_id for n, stub in enumerate([first_server, other] * 4)
        ]
        # Whoever is asked knows of every clone.
        feeds = await asyncio.gather(*(watch_all(other, clone_id) for clone_id in accepted))
    assert {changes[-1].status for changes in feeds} == {"completed"}
    assert sorted(plan.clone_id for plan in cloning.trainer.plans) == sorted(accepted)


async def test_a_server_whose_trainers_are_not_ready_leaves_the_clones_to_another(cloning: Cloning) -> None:
    cloning.trainer.seats = 0
    ready = dataclasses.replace(cloning, trainer=ScriptedTrainer())
    async with cloning.serve() as stub:
        clone_id = (await stub.StartClone(order())).clone_id
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert (health.queued_clones, health.running_clones) == (1, 0)
        async with ready.serve():
            assert (await watch_all(stub, clone_id))[-1].status == "completed"
    assert (len(cloning.trainer.plans), len(ready.trainer.plans)) == (0, 1)


async def test_a_server_claims_no_more_clones_than_its_trainers_have_seats_for(cloning: Cloning) -> None:
    cloning.set(parallel_clones=4)
    cloning.trainer.seats = 2
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        accepted = [(await stub.StartClone(order(f"student-{n}"))).clone_id for n in range(4)]
        await asyncio.gather(*(until(stub, clone_id, "creating_adapter") for clone_id in accepted[:2]))
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert (health.queued_clones, health.running_clones) == (2, 2)
        # Another trainer is ready: the rest need not wait for the first two.
        cloning.trainer.seats = 4
        await asyncio.gather(*(until(stub, clone_id, "creating_adapter") for clone_id in accepted[2:]))
        gate.open()
        feeds = await asyncio.gather(*(watch_all(stub, clone_id) for clone_id in accepted))
    assert {changes[-1].status for changes in feeds} == {"completed"}


async def test_a_server_that_shuts_down_hands_its_clone_to_the_other_at_once(cloning: Cloning) -> None:
    cloning.set(lease_seconds=LONG_LEASE_SECONDS)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as first:
        clone_id = (await first.StartClone(order())).clone_id
        await gate.reached.wait()
        async with cloning.serve() as second:
            pass
        # The second one never had it; what it leaves is the first one's still.
        assert cloning.trainer.stopped_clones == []
    async with cloning.serve() as second:
        gate.open()
        changes = await watch_all(second, clone_id)
        assert (changes[-1].status, changes[-1].attempt) == ("completed", 2)
        assert await attempts_of(second, clone_id) == [(1, "handed_back"), (2, "completed")]
    assert len(await cloning.adapters.list_versions(STUDENT)) == 1


async def test_a_server_that_hangs_is_overtaken_and_can_neither_tell_nor_publish_anything(
    cloning: Cloning, clones: CloneStore
) -> None:
    registry = Registry.of(clones, sealing=SEALING)
    clone_id = (await registry.intake.start(STUDENT, baseline())).clone_id
    hung = await registry.leases.claim(seconds=0.2)
    assert isinstance(hung, CloneLease)
    journal = Journal(registry.changes, hung)
    await journal.reach(CloneState.FINE_TUNING, "step 1")
    async with cloning.serve() as stub:
        changes = await watch_all(stub, clone_id)
        assert (changes[-1].status, changes[-1].attempt) == ("completed", 2)
        assert await attempts_of(stub, clone_id) == [(1, "lease_expired"), (2, "completed")]
    # It wakes up: its weights are other ones, as it was at another step.
    with pytest.raises(CloneOvertaken):
        await journal.reach(CloneState.SAVING, "Saving the model")
    (plan,) = cloning.trainer.plans
    late = await cloning.adapters.stage(STUDENT, weights_for(plan)[:-4] + b"\0\0\0\0", recipe=recipe_for(plan))
    assert [late] == await cloning.adapters.list_versions(STUDENT)


async def test_a_server_that_lost_its_lease_stops_the_training_at_once(cloning: Cloning, clones: CloneStore) -> None:
    cloning.set(lease_seconds=LONG_LEASE_SECONDS)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = (await stub.StartClone(order())).clone_id
        await gate.reached.wait()
        await expire(cloning, clone_id)
        registry = Registry.of(clones, sealing=SEALING)
        lease = await registry.leases.claim(seconds=LONG_LEASE_SECONDS)
        assert isinstance(lease, CloneLease)
        await Journal(registry.changes, lease).take_over()
        await cloning.trainer.cut_off.wait()
        assert cloning.trainer.stopped_clones == [clone_id]


async def test_a_clone_whose_servers_are_lost_every_time_ends(cloning: Cloning, clones: CloneStore) -> None:
    registry = Registry.of(clones, sealing=SEALING)
    clone_id = (await registry.intake.start(STUDENT, baseline())).clone_id
    for attempt in range(10):
        lease = await registry.leases.claim(seconds=LONG_LEASE_SECONDS)
        assert isinstance(lease, CloneLease)
        journal = Journal(registry.changes, lease)
        if attempt:
            await journal.take_over()
        await journal.reach(CloneState.LOADING_BASE_MODEL, "Loading")
        await expire(cloning, clone_id)
    async with cloning.serve() as stub:
        last = (await watch_all(stub, clone_id))[-1]
        assert (last.status, cloning.trainer.plans) == ("failed", [])
        assert len(await attempts_of(stub, clone_id)) == 10


async def test_the_second_clone_of_a_student_runs_after_the_first_and_never_beside_it(cloning: Cloning) -> None:
    cloning.set(parallel_clones=4)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        first = (await stub.StartClone(order())).clone_id
        await gate.reached.wait()
        behind = order()
        behind.queue_behind = True
        started = await stub.StartClone(behind)
        assert started.queue_position == 1
        assert (await stub.GetClone(pb.GetCloneRequest(clone_id=started.clone_id))).queue_position == 1
        another = (await stub.StartClone(order("another"))).clone_id
        await until(stub, another, "creating_adapter")
        assert len(cloning.trainer.plans) == 2, "there is a slot for it, and it waits all the same"
        gate.open()
        await asyncio.gather(*(watch_all(stub, clone_id) for clone_id in (first, another, started.clone_id)))
    assert cloning.trainer.plans[-1].clone_id == started.clone_id
    assert [manifest.recipe.clone_id for manifest in await cloning.adapters.list_versions(STUDENT)] == [
        first,
        started.clone_id,
    ]
