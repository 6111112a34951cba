"""WatchClone through a real server: what a watcher sees, from wherever it starts, whatever happens in between."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from redis.asyncio import Redis

from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.registry import Registry
from mesh.errors import CloneNotFound, InvalidField, NoTrainableExamples, TooManyWatches
from testing.parts.stores import RedisEndpoint
from testing.waiting import until as until_true
from tests.cloning_server.clones.conftest import claim_next, next_change
from tests.cloning_server.conftest import (
    SEALING,
    Cloning,
    CloningStub,
    order,
    raised,
    start_clone,
    until,
    watch,
    watch_all,
)

WAIT_SECONDS = 20
Watch = grpc.aio.UnaryStreamCall[pb.WatchCloneRequest, pb.WatchCloneResponse]


async def test_the_first_message_is_the_current_state(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    clone_id = await start_clone(stub)
    await cloning.trainer.gates[CloneState.FINE_TUNING].reached.wait()
    now = await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))
    first = await anext(watch(stub, clone_id))
    assert (first.sequence, first.status, first.progress) == (now.sequence, now.status, now.progress)
    assert first.status == "creating_adapter"
    assert first.sequence > 1


async def test_a_watch_from_any_number_on_holds_exactly_what_comes_after(stub: CloningStub) -> None:
    clone_id = await start_clone(stub)
    whole = await watch_all(stub, clone_id)
    assert [change.sequence for change in whole] == list(range(1, len(whole) + 1))
    for after in range(len(whole) + 1):
        assert await watch_all(stub, clone_id, after_sequence=after) == whole[after:]
    assert await watch_all(stub, clone_id, after_sequence=None) == whole[-1:], "a final clone is told once"


async def test_watchers_that_come_and_go_while_it_runs_see_each_change_once(stub: CloningStub) -> None:
    clone_id = await start_clone(stub)

    async def hop(changes_a_watch: int) -> list[pb.WatchCloneResponse]:
        """Watches a few changes at a time, each watch after the last one seen."""
        changes: list[pb.WatchCloneResponse] = []
        while not changes or changes[-1].status != "completed":
            stream = watch(stub, clone_id, after_sequence=changes[-1].sequence if changes else 0)
            for _ in range(changes_a_watch):
                if (change := await anext(stream, None)) is None:
                    break
                changes.append(change)
        return changes

    whole, *hops = await asyncio.gather(watch_all(stub, clone_id), *(hop(n) for n in (1, 2, 3, 5, 8)))
    assert all(hopped == whole for hopped in hops)


async def test_fifty_watchers_see_the_same(stub: CloningStub) -> None:
    clone_id = await start_clone(stub)
    first, *others = await asyncio.gather(*(watch_all(stub, clone_id) for _ in range(50)))
    assert first[-1].status == "completed"
    assert all(other == first for other in others)


async def test_an_idle_watch_repeats_the_last_change_as_a_sign_of_life(cloning: Cloning) -> None:
    cloning.set(heartbeat_seconds=0.05)
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        stream = aiter(stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_id, after_sequence=1)))
        beats = [await anext(stream) for _ in range(3)]
        assert [(beat.sequence, beat.heartbeat, beat.status) for beat in beats] == [(1, True, "queued")] * 3
        # A sign of life is no change: what comes next is the next number.
        cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].open()
        rest = [change async for change in stream if not change.heartbeat]
        assert [change.sequence for change in rest] == list(range(2, len(rest) + 2))


async def test_a_failed_clone_is_a_last_message_and_no_failed_call(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.faults.append(NoTrainableExamples(responses=3, usable=1))
    last = (await watch_all(stub, await start_clone(stub)))[-1]
    assert last.status == "failed"
    assert last.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


async def test_watches_are_bounded(cloning: Cloning) -> None:
    cloning.set(watch_limit=2)
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)

        async def open_watch() -> Watch:
            call = stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_id))
            assert (await anext(aiter(call))).clone_id == clone_id
            return call

        first, _ = [await open_watch() for _ in range(2)]
        with raised() as failure:
            await open_watch()
        assert isinstance(failure.error, TooManyWatches)
        assert failure.error.facts == {"limit": "2"}
        assert (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).clone_id == clone_id

        async def is_free() -> bool:
            try:
                await open_watch()
            except grpc.aio.AioRpcError:
                return False
            return True

        # A place is free again a moment after its watch has ended.
        first.cancel()
        await until_true(is_free, seconds=WAIT_SECONDS)


async def test_of_a_clone_that_ended_long_ago_its_acceptance_and_its_end_are_left(
    cloning: Cloning, redis: Redis, clones: CloneStore
) -> None:
    feed = f"{clones.channel.removesuffix('changes')}feed:"
    # Housekeeping has its turn all the time, and has nothing to trim for an hour.
    cloning.set(clone_changes_hours=1, housekeeping_seconds=0.05)
    async with cloning.serve() as stub:
        clone_id = (await stub.StartClone(order(request_id="enrol"))).clone_id
        whole = await watch_all(stub, clone_id)
        accepted = await stub.StartClone(order(request_id="enrol"))
        joint = [change async for change in stub.WatchClones(pb.WatchClonesRequest(clone_ids=[clone_id]))]
        assert len(whole) > 2
        assert await redis.xlen(feed + clone_id) == len(whole)

    cloning.set(clone_changes_hours=0)
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    async with cloning.serve() as stub:
        running = await start_clone(stub, "another")
        await until(stub, running, "creating_adapter")

        async def is_trimmed() -> bool:
            return await redis.xlen(feed + clone_id) == 2

        await until_true(is_trimmed, seconds=WAIT_SECONDS)
        assert await redis.xlen(feed + running) > 2, "one that runs stays whole"
        assert await watch_all(stub, clone_id) == [whole[0], whole[-1]]
        assert await watch_all(stub, clone_id, after_sequence=None) == whole[-1:]
        for after in range(1, len(whole)):
            assert await watch_all(stub, clone_id, after_sequence=after) == whole[-1:]
        assert await watch_all(stub, clone_id, after_sequence=len(whole)) == []
        assert [change async for change in stub.WatchClones(pb.WatchClonesRequest(clone_ids=[clone_id]))] == joint
        request = pb.WatchClonesRequest(clone_ids=[clone_id], after_sequence=joint[0].sequence - 1)
        assert [change async for change in stub.WatchClones(request)] == joint
        assert await stub.StartClone(order(request_id="enrol")) == accepted
        assert (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).status == "completed"


@pytest.mark.parametrize("kind", ["WatchClone", "WatchClones"])
async def test_a_watch_goes_on_after_the_store_has_lost_what_it_has_shown(
    kind: str, cloning: Cloning, redis: Redis, clones: CloneStore
) -> None:
    cloning.set(heartbeat_seconds=0.1)
    # No worker takes the clone: this test changes it.
    cloning.trainer.seats = 0
    registry = Registry.of(clones, sealing=SEALING)
    prefix = clones.channel.removesuffix("changes")
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        lease = await claim_next(registry)
        keys = [f"{prefix}feed:{clone_id}", f"{prefix}change_counter"]
        kept = {key: bytes(await redis.dump(key) or b"") for key in keys}
        later = next_change(lease.clone, CloneState.LOADING_BASE_MODEL)
        for clone in (later, next_change(later)):
            await registry.changes.write(clone, token=lease.token)
        stream: AsyncIterator[pb.WatchCloneResponse | pb.WatchClonesResponse]
        if kind == "WatchClone":
            stream = aiter(stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_id)))
        else:
            stream = aiter(stub.WatchClones(pb.WatchClonesRequest(clone_ids=[clone_id])))
        assert (await anext(stream)).status == "fine_tuning"

        # As if Valkey crashed and restarted without its last second. The clone's end gets the number of a lost change,
        # which the watch has seen.
        for key in keys:
            await redis.restore(key, 0, kept[key], replace=True)
        await registry.changes.cancel(clone_id)
        await redis.client_kill_filter(_type="pubsub")
        async with asyncio.timeout(WAIT_SECONDS):
            assert [change.status async for change in stream if not change.heartbeat] == ["cancelled"]


async def test_a_number_that_is_yet_to_come_is_refused(stub: CloningStub) -> None:
    clone_id = await start_clone(stub)
    last = (await watch_all(stub, clone_id))[-1].sequence
    with raised() as failure:
        await watch_all(stub, clone_id, after_sequence=last + 1)
    assert isinstance(failure.error, InvalidField)
    (violation,) = failure.error.violations
    assert violation.field == "after_sequence"
    assert str(last) in violation.description


async def test_watching_an_unknown_clone_is_not_found(stub: CloningStub) -> None:
    with raised() as failure:
        await watch_all(stub, "clone_unknown")
    assert isinstance(failure.error, CloneNotFound)


async def test_a_watch_outlives_a_restart_of_the_store(cloning: Cloning, own_redis: RedisEndpoint) -> None:
    cloning.set(redis_url=own_redis.url)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        watching = asyncio.create_task(watch_all(stub, clone_id))
        await gate.reached.wait()
        await own_redis.part.kill()
        # The clone goes on while the store is away, and waits for it with its next change.
        gate.open()
        await own_redis.part.start()
        changes = await watching
        assert changes[-1].status == "completed"
        assert [change.sequence for change in changes] == list(range(1, len(changes) + 1))
        assert changes == await watch_all(stub, clone_id)


async def test_a_watch_goes_on_over_a_restart_of_the_server(cloning: Cloning) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await gate.reached.wait()
        stream = watch(stub, clone_id, after_sequence=0)
        before = [await anext(stream) for _ in range(5)]
    gate.open()
    async with cloning.serve() as stub:
        await until(stub, clone_id, "completed")
        after = await watch_all(stub, clone_id, after_sequence=before[-1].sequence)
        assert before + after == await watch_all(stub, clone_id)
