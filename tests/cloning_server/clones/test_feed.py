"""WatchClone through a real server: what a watcher sees, from wherever it starts, whatever happens in between."""

import asyncio

import grpc
from aivo.cloning.v1 import cloning_service_pb2 as pb

from cloning_server.clone import CloneState
from mesh.errors import CloneNotFound, InvalidField, NoTrainableExamples
from testing.parts.stores import RedisEndpoint
from tests.cloning_server.conftest import (
    Cloning,
    CloningStub,
    raised,
    start_clone,
    until,
    watch,
    watch_all,
)


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
