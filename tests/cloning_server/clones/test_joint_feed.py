"""WatchClones through a real server, over gRPC and as server-sent events: many clones, one stream, nothing lost."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from redis.asyncio import Redis

from cloning_server.app import open_server
from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.listing import BACKLOG_SECONDS
from cloning_server.clones.records import StoredReading
from mesh.errors import CloneNotFound, InvalidField, NoTrainableExamples
from testing.parts.envoy import envoy
from testing.parts.stores import RedisEndpoint
from tests.cloning_server.conftest import Cloning, CloningStub, order, raised, start_clone, until, watch_all

CLASS = tuple(f"student-{n}" for n in range(7))


def feed_key(clones: CloneStore, clone_id: str) -> str:
    """The key of a clone's feed in the store."""
    return f"{clones.channel.removesuffix('changes')}feed:{clone_id}"


async def watch_joint(stub: CloningStub, **fields: object) -> list[pb.WatchClonesResponse]:
    """Every message of a joint watch until it ends, without heartbeats."""
    request = pb.WatchClonesRequest(**fields)  # type: ignore[arg-type]
    return [change async for change in stub.WatchClones(request) if not change.heartbeat]


async def test_a_class_is_watched_in_one_stream_as_each_clone_would_be_alone(stub: CloningStub) -> None:
    clone_ids = [await start_clone(stub, student_id) for student_id in CLASS]

    changes = await watch_joint(stub, clone_ids=clone_ids, after_sequence=0)

    numbers = [change.sequence for change in changes]
    assert numbers == sorted(set(numbers)), "one order for all, nothing twice"
    for clone_id, student_id in zip(clone_ids, CLASS, strict=True):
        alone = await watch_all(stub, clone_id)
        joint = [change for change in changes if change.clone_id == clone_id]
        assert [(c.clone_sequence, c.status, c.progress, c.update_time) for c in joint] == [
            (c.sequence, c.status, c.progress, c.update_time) for c in alone
        ]
        assert {change.student_id for change in joint} == {student_id}
        assert joint[-1].model == alone[-1].model


async def test_the_current_states_come_first_and_the_stream_ends_with_the_last_clone(
    cloning: Cloning, stub: CloningStub
) -> None:
    ended = await start_clone(stub, "student-0")
    await watch_all(stub, ended)
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    running, waiting = [await start_clone(stub, f"student-{n}") for n in (1, 2)]
    await until(stub, running, "creating_adapter")

    stream = aiter(stub.WatchClones(pb.WatchClonesRequest(clone_ids=[ended, running, waiting])))
    first = {change.clone_id: change for change in [await anext(stream) for _ in range(3)]}

    assert [first[clone_id].status for clone_id in (ended, running, waiting)] == [
        "completed",
        "creating_adapter",
        "queued",
    ]
    assert first[waiting].queue_position == 1
    assert first[ended].model.active
    cloning.trainer.gates[CloneState.FINE_TUNING].open()
    rest = [change async for change in stream]
    assert Counter(change.clone_id for change in rest if change.status == "completed") == {running: 1, waiting: 1}
    assert rest[-1].clone_id == waiting


async def test_a_watch_from_any_number_on_holds_exactly_what_comes_after(stub: CloningStub) -> None:
    clone_ids = [await start_clone(stub, student_id) for student_id in CLASS[:3]]
    whole = await watch_joint(stub, clone_ids=clone_ids, after_sequence=0)

    for position, change in enumerate(whole, start=1):
        assert await watch_joint(stub, clone_ids=clone_ids, after_sequence=change.sequence) == whole[position:]
        assert await watch_joint(stub, student_ids=CLASS[:3], after_sequence=change.sequence) == whole[position:]


async def test_a_watcher_that_is_cut_again_and_again_sees_each_change_once(stub: CloningStub) -> None:
    clone_ids = [await start_clone(stub, student_id) for student_id in CLASS[:4]]

    async def hop(changes_a_watch: int) -> list[pb.WatchClonesResponse]:
        """Watches a few changes at a time, each watch after the last one seen, until one holds nothing."""
        changes: list[pb.WatchClonesResponse] = []
        while True:
            after = changes[-1].sequence if changes else 0
            stream = aiter(stub.WatchClones(pb.WatchClonesRequest(clone_ids=clone_ids, after_sequence=after)))
            for position in range(changes_a_watch):
                if (change := await anext(stream, None)) is None:
                    if position == 0:
                        return changes
                    break
                changes.append(change)

    whole, *hops = await asyncio.gather(
        watch_joint(stub, clone_ids=clone_ids, after_sequence=0), *(hop(n) for n in (1, 3, 8))
    )
    assert all(hopped == whole for hopped in hops)


async def test_however_much_there_is_to_read_it_is_read_in_pages(
    cloning: Cloning, stub: CloningStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_ids = [await start_clone(stub, student_id) for student_id in CLASS[:3]]
    whole = await watch_joint(stub, clone_ids=ended_ids, after_sequence=0)
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    running = await start_clone(stub, CLASS[3])
    await until(stub, running, "creating_adapter")
    sizes: list[int] = []
    read_feeds = CloneStore.read_feeds

    async def read_and_count(store: CloneStore, clone_ids: Sequence[str], **kwargs: Any) -> StoredReading:
        reading = await read_feeds(store, clone_ids, **kwargs)
        if kwargs["after"] is not None:
            sizes.append(len(reading.changes))
        return reading

    monkeypatch.setattr(CloneStore, "read_feeds", read_and_count)
    monkeypatch.setattr("cloning_server.clones.joint_feed.PAGE_CHANGES", 4)
    assert await watch_joint(stub, clone_ids=ended_ids, after_sequence=0) == whole
    assert (max(sizes), sum(sizes)) == (4, len(whole))

    watching = asyncio.create_task(watch_joint(stub, clone_ids=[*ended_ids, running], after_sequence=0))
    cloning.trainer.gates[CloneState.FINE_TUNING].open()
    changes = await watching
    assert changes[: len(whole)] == whole
    assert [change.clone_sequence for change in changes[len(whole) :]] == list(range(1, len(changes) - len(whole) + 1))
    assert max(sizes) == 4


async def test_of_a_student_the_unfinished_clones_are_followed_or_else_the_latest(
    cloning: Cloning, stub: CloningStub
) -> None:
    first = await start_clone(stub)
    await watch_all(stub, first)
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].shut()
    second = await start_clone(stub)
    request = order()
    request.queue_behind = True
    third = (await stub.StartClone(request)).clone_id

    stream = aiter(stub.WatchClones(pb.WatchClonesRequest(student_ids=["student123", "nobody"])))
    seen = [await anext(stream) for _ in range(2)]
    assert {change.clone_id for change in seen} == {second, third}
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].open()
    seen += [change async for change in stream]
    assert Counter(change.clone_id for change in seen if change.status == "completed") == {second: 1, third: 1}

    assert [change.clone_id for change in await watch_joint(stub, student_ids=["student123"])] == [third]
    assert await watch_joint(stub, student_ids=["nobody"]) == []


async def test_an_idle_watch_repeats_the_last_change_of_each_unfinished_clone(cloning: Cloning) -> None:
    cloning.set(heartbeat_seconds=0.05)
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].shut()
    async with cloning.serve() as stub:
        clone_ids = [await start_clone(stub, student_id) for student_id in CLASS[:2]]
        await cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].reached.wait()
        before = await stub.GetClone(pb.GetCloneRequest(clone_id=clone_ids[1]))
        stream = aiter(stub.WatchClones(pb.WatchClonesRequest(clone_ids=clone_ids)))
        current = [await anext(stream) for _ in range(2)]
        beats = [await anext(stream) for _ in range(4)]

        assert not any(change.heartbeat for change in current)
        assert all(beat.heartbeat for beat in beats)
        assert [beat.sequence for beat in beats] == [current[-1].sequence] * 4
        assert Counter(beat.clone_id for beat in beats) == dict.fromkeys(clone_ids, 2)
        assert (before.queue_position, beats[-1].clone_id, beats[-1].queue_position) == (1, clone_ids[1], 1)
        cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].open()
        rest = [change async for change in stream if not change.heartbeat]
        assert {change.clone_id for change in rest if change.status == "completed"} == set(clone_ids)


async def test_a_failed_clone_is_a_message_and_the_others_go_on(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.faults.append(NoTrainableExamples(responses=3, usable=1))
    clone_ids = [await start_clone(stub, student_id) for student_id in CLASS[:2]]

    changes = await watch_joint(stub, clone_ids=clone_ids)

    last = {change.clone_id: change for change in changes}
    assert [last[clone_id].status for clone_id in clone_ids] == ["failed", "completed"]
    assert last[clone_ids[0]].error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


async def test_an_unknown_clone_is_named_and_nothing_is_watched(stub: CloningStub) -> None:
    clone_id = await start_clone(stub)
    with raised() as failure:
        await watch_joint(stub, clone_ids=[clone_id, "clone_unknown"])
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert isinstance(failure.error, CloneNotFound)
    assert failure.error.facts == {"clone_id": "clone_unknown"}


async def test_an_erased_clone_ends_a_watch_that_names_it_and_no_other(
    cloning: Cloning, stub: CloningStub, redis: Redis, clones: CloneStore
) -> None:
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].shut()
    running, waiting = [await start_clone(stub, student_id) for student_id in CLASS[:2]]
    by_clone = aiter(stub.WatchClones(pb.WatchClonesRequest(clone_ids=[running, waiting])))
    by_student = aiter(stub.WatchClones(pb.WatchClonesRequest(student_ids=CLASS[:2])))
    for stream in (by_clone, by_student):
        for _ in range(2):
            await anext(stream)

    # Erased between two readings: no watcher has seen that the clone was cancelled first.
    await redis.delete(feed_key(clones, waiting))
    await redis.publish(clones.channel, waiting)
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].open()

    with raised() as failure:
        _ = [change async for change in by_clone]
    assert isinstance(failure.error, CloneNotFound)
    assert failure.error.facts == {"clone_id": waiting}
    rest = [change async for change in by_student]
    assert (rest[-1].clone_id, rest[-1].status) == (running, "completed")


@pytest.mark.parametrize(
    ("request_", "field", "description"),
    [
        (pb.WatchClonesRequest(), "clone_ids", "must name a clone, or student_ids a student"),
        (
            pb.WatchClonesRequest(clone_ids=[f"c{n}" for n in range(101)]),
            "clone_ids",
            "must contain no more than 100 items",
        ),
        (
            pb.WatchClonesRequest(student_ids=[f"s{n}" for n in range(101)]),
            "student_ids",
            "must contain no more than 100 items",
        ),
        (pb.WatchClonesRequest(clone_ids=["c1", "../x"]), "clone_ids[1]", "must be 1 to 64 letters"),
        (pb.WatchClonesRequest(student_ids=["x\n"]), "student_ids[0]", "must be 1 to 64 letters"),
        (pb.WatchClonesRequest(student_ids=["s1"], after_sequence=2_000_000_000), "after_sequence", "must be at most"),
    ],
)
async def test_a_watch_that_cannot_be_is_refused(
    stub: CloningStub, request_: pb.WatchClonesRequest, field: str, description: str
) -> None:
    with raised() as failure:
        await anext(aiter(stub.WatchClones(request_)))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(failure.error, InvalidField)
    (violation,) = failure.error.violations
    assert violation.field == field
    assert violation.description.startswith(description)


async def test_a_joint_watch_outlives_a_restart_of_the_store(cloning: Cloning, own_redis: RedisEndpoint) -> None:
    cloning.set(redis_url=own_redis.url)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_ids = [await start_clone(stub, student_id) for student_id in CLASS[:2]]
        watching = asyncio.create_task(watch_joint(stub, clone_ids=clone_ids, after_sequence=0))
        await gate.reached.wait()
        await own_redis.part.kill()
        gate.open()
        await own_redis.part.start()
        changes = await watching
        assert changes == await watch_joint(stub, clone_ids=clone_ids, after_sequence=0)
        assert Counter(change.status for change in changes)["completed"] == 2


async def test_clones_of_an_earlier_version_are_watched_too(
    cloning: Cloning, stub: CloningStub, redis: Redis, clones: CloneStore
) -> None:
    clone_id = await start_clone(stub)
    await watch_all(stub, clone_id)
    key = feed_key(clones, clone_id)
    entries = cast("list[tuple[str, dict[str, str]]]", await redis.xrange(key))
    await redis.delete(key)
    for entry_id, fields in entries:
        await redis.xadd(key, {"clone": fields["clone"]}, id=entry_id)

    changes = await watch_joint(stub, clone_ids=[clone_id], after_sequence=0)

    assert [change.clone_sequence for change in changes] == list(range(1, len(entries) + 1))
    assert [change.status for change in await watch_joint(stub, clone_ids=[clone_id])] == ["completed"]


async def test_however_many_watch_the_queue_is_read_once(cloning: Cloning, redis: Redis) -> None:
    cloning.set(heartbeat_seconds=0.01)
    cloning.trainer.gates[CloneState.LOADING_BASE_MODEL].shut()
    async with cloning.serve() as stub:
        clone_ids = [await start_clone(stub, student_id) for student_id in CLASS]
        reads_before, started_at = await queue_reads(redis), time.monotonic()
        streams: list[AsyncIterator[object]] = [
            aiter(stub.WatchClones(pb.WatchClonesRequest(clone_ids=clone_ids))) for _ in range(10)
        ]
        streams += [aiter(stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_ids[-1]))) for _ in range(10)]
        # The current states and heartbeats, each with an estimate.
        for stream in streams:
            for _ in range(20):
                await anext(stream)
        reads = await queue_reads(redis) - reads_before
        assert reads <= 3 + (time.monotonic() - started_at) / BACKLOG_SECONDS, "the queue was read anew for each watch"


async def queue_reads(redis: Redis) -> int:
    """How often the sizes of all waiting clones were read, which estimates alone are made of."""
    statistics = await redis.info("commandstats")
    return int(statistics.get("cmdstat_hgetall", {}).get("calls", 0))


async def test_a_page_watches_seven_clones_on_one_connection_and_goes_on_after_a_cut(
    cloning: Cloning, tmp_path: Path
) -> None:
    async with open_server(cloning.settings, trainer=cloning.trainer) as server:
        await server.start()
        address = f"127.0.0.1:{server.port}"
        async with (
            envoy(tmp_path, brain_address="127.0.0.1:9", cloning_address=address) as edge,
            grpc.aio.insecure_channel(edge.cloning_address) as channel,
            httpx.AsyncClient(base_url=edge.cloning_url, timeout=60) as page,
        ):
            stub = CloningStub(channel)
            gate = cloning.trainer.gates[CloneState.FINE_TUNING]
            gate.shut()
            clone_ids = [await start_clone(stub, student_id) for student_id in CLASS]
            path = "/v1/clones/watch?" + "&".join(f"student_id={student_id}" for student_id in CLASS)
            async with page.stream("GET", f"{path}&after_sequence=0") as answer:
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                lines = answer.aiter_lines()
                # An id, the data and an empty line each.
                first_lines = [await anext(lines) for _ in range(3 * len(CLASS))]
            gate.open()
            seen = first_lines[-3].removeprefix("id: ")
            rest = await page.get(f"{path}&after_sequence=0", headers={"last-event-id": seen})
            changes = await watch_joint(stub, clone_ids=clone_ids, after_sequence=0)
            id_lines = (line for line in rest.text.splitlines() if line.startswith("id: "))
            # A heartbeat repeats the id before it.
            ids = list(dict.fromkeys(line.removeprefix("id: ") for line in id_lines))
            over = await page.get(path, headers={"last-event-id": ids[-1]})

    assert ids == [str(change.sequence) for change in changes if change.sequence > int(seen)]
    assert rest.text.count('"status":"completed"') == len(CLASS)
    assert (over.status_code, over.content) == (204, b"")
