"""A clone's record in Valkey that can't be read fails this clone, and nothing else."""

import json
from collections.abc import Awaitable, Callable
from typing import cast

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_service_pb2
from prometheus_client import generate_latest
from redis.asyncio import Redis

from cloning_server.app import open_server
from cloning_server.clone import Terms
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.codec import encode_baseline
from cloning_server.clones.registry import Registry
from mesh.errors import CloneCorrupt
from tests.cloning_server.conftest import SEALING, STUDENT, Cloning, CloningStub, baseline, raised, watch_all

Damage = Callable[[Redis, str, str], Awaitable[object]]


async def add_a_change(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.xadd(f"{prefix}feed:{clone_id}", {"clone": '{"state": "meditating"}'}, id="2-0")


async def add_another_field(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.xadd(f"{prefix}feed:{clone_id}", {"clown": "{}"}, id="2-0")


async def replace_all_changes(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.delete(f"{prefix}feed:{clone_id}")
    await redis.xadd(f"{prefix}feed:{clone_id}", {"clone": b"\xff\xfe"}, id="1-0")


async def lose_all_changes(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.delete(f"{prefix}feed:{clone_id}")


async def name_a_student_in_the_manifest_that_can_not_be(redis: Redis, prefix: str, clone_id: str) -> None:
    feed = f"{prefix}feed:{clone_id}"
    ((_, fields),) = cast("list[tuple[str, dict[str, str]]]", await redis.xrevrange(feed, count=1))
    clone = json.loads(fields["clone"]) | {"manifest": {"ref": {"student_id": "../x", "version": 1}}}
    await redis.xadd(feed, {"clone": json.dumps(clone)}, id="2-0")


async def replace_the_baseline(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.set(f"{prefix}baseline:{clone_id}", "[]")


async def lose_the_baseline(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.delete(f"{prefix}baseline:{clone_id}")


async def seal_something_else(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.set(f"{prefix}baseline:{clone_id}", await SEALING.seal(b"[]", context=clone_id))


async def swap_the_baseline_for_that_of_another_clone(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.set(f"{prefix}baseline:{clone_id}", await SEALING.seal(encode_baseline(baseline()), context="clone_2"))


async def cut_the_baseline_off(redis: Redis, prefix: str, clone_id: str) -> None:
    sealed = str(await redis.get(f"{prefix}baseline:{clone_id}"))
    await redis.set(f"{prefix}baseline:{clone_id}", sealed[:-8])


async def overwrite_the_sealed_baseline(redis: Redis, prefix: str, clone_id: str) -> None:
    await redis.setrange(f"{prefix}baseline:{clone_id}", len("sealed1:"), "\xff" * 1000)


DAMAGES: dict[Damage, str] = {
    add_a_change: "CLONE_CORRUPT",
    add_another_field: "CLONE_CORRUPT",
    lose_all_changes: "CLONE_CORRUPT",
    name_a_student_in_the_manifest_that_can_not_be: "CLONE_CORRUPT",
    replace_all_changes: "CLONE_CORRUPT",
    replace_the_baseline: "CLONE_CORRUPT",
    seal_something_else: "CLONE_CORRUPT",
    lose_the_baseline: "BASELINE_UNREADABLE",
    swap_the_baseline_for_that_of_another_clone: "BASELINE_UNREADABLE",
    cut_the_baseline_off: "BASELINE_UNREADABLE",
    overwrite_the_sealed_baseline: "BASELINE_UNREADABLE",
}


async def two_clones(store: CloneStore) -> tuple[str, str]:
    """A student's clone and one behind it, accepted while no server takes clones."""
    intake = Registry.of(store, sealing=SEALING).intake
    first = await intake.start(STUDENT, baseline())
    second = await intake.start(STUDENT, baseline(), terms=Terms(queue_behind=True))
    return first.clone_id, second.clone_id


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.items(), ids=[damage.__name__ for damage in DAMAGES])
async def test_the_clone_fails_and_the_next_one_of_its_student_completes(
    cloning: Cloning, clones: CloneStore, damage: Damage, reason: str
) -> None:
    first, second = await two_clones(clones)
    await damage(cloning.redis, clones.channel.removesuffix("changes"), first)
    async with open_server(cloning.settings, trainer=cloning.trainer) as server:
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = CloningStub(channel)
            assert (await watch_all(stub, second))[-1].status == "completed"
            clone = await stub.GetClone(pb.GetCloneRequest(clone_id=first))
            assert (clone.status, clone.student_id) == ("failed", STUDENT)
            assert reason in str(clone.error)
            assert first in clone.message
            assert (await watch_all(stub, first))[-1].status == "failed"
            listed = await stub.ListClones(pb.ListClonesRequest(student_id=STUDENT))
            assert [clone.clone_id for clone in listed.clones] == [second, first]
        assert 'aivo_background_restarts_total{task="Worker"} 0.0' in generate_latest(server.registry).decode()


@pytest.mark.parametrize(
    "lost_keys", ["feed:{clone}", "clones:{student}", "open", "feed:{clone} clones:{student} open"]
)
async def test_a_student_is_deleted_whatever_the_store_has_lost_of_an_unfinished_clone(
    cloning: Cloning, clones: CloneStore, lost_keys: str
) -> None:
    first, second = await two_clones(clones)
    prefix = clones.channel.removesuffix("changes")
    await cloning.redis.delete(*(prefix + key for key in lost_keys.format(clone=first, student=STUDENT).split()))
    cloning.trainer.seats = 0
    async with cloning.serve() as stub:
        receipt = await stub.DeleteStudent(student_service_pb2.DeleteStudentRequest(student_id=STUDENT), timeout=20)
        assert receipt.clones.clones == 2
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert (health.queued_clones, health.running_clones) == (0, 0)
    left = b"".join(key.encode() + value for key, value in (await cloning.stored()).items())
    assert not [name for name in (first, second, STUDENT) if name.encode() in left]


async def test_one_that_can_not_be_read_is_left_out_of_lists_and_goes_with_its_student(
    cloning: Cloning, clones: CloneStore
) -> None:
    first, second = await two_clones(clones)
    await replace_all_changes(cloning.redis, clones.channel.removesuffix("changes"), second)
    # Nothing ends the first clone, so nobody claims the second.
    cloning.trainer.seats = 0
    async with cloning.serve() as stub:
        listed = await stub.ListClones(pb.ListClonesRequest(student_id=STUDENT))
        assert [clone.clone_id for clone in listed.clones] == [first]
        with raised() as failed:
            await stub.GetClone(pb.GetCloneRequest(clone_id=second))
        assert isinstance(failed.error, CloneCorrupt)
        receipt = await stub.DeleteStudent(student_service_pb2.DeleteStudentRequest(student_id=STUDENT))
        assert (receipt.clones.clones, receipt.clones.cancelled) == (2, 1)
    left = await cloning.stored()
    assert not [key for key in left if first in key or second in key or STUDENT in key]
