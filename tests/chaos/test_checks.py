"""What chaos checks finds the faults that are planted here: otherwise a run without a fault would say nothing."""

import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub

from cloning_server.app import open_server
from cloning_server.settings import CloningSettings
from mesh import background
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.valkey.connection import open_redis
from testing.chaos.crowd import CloneHistory, Crowd
from testing.chaos.invariants import Remains, doubled, lost, violations
from testing.chaos.recovery import Watched, watch_cloning_server
from testing.parts.stores import RedisEndpoint, S3Endpoint
from testing.scripted.brain import ScriptedBrain
from testing.scripted.trainer import ScriptedTrainer
from testing.waiting import until


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A cloning server, its callers, and what is left of their clones."""

    crowd: Crowd
    remains: Remains
    watched: Watched


@pytest.fixture
async def served(
    redis_endpoint: RedisEndpoint, s3_endpoint: S3Endpoint, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    # Long enough for the crash of a task to be seen.
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 1.0)
    tenant = f"t{uuid.uuid4().hex}"
    async with (
        S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs,
        open_redis(redis_endpoint.url) as redis,
    ):
        adapters = AdapterStore(blobs, tenant=tenant)
        brain = ScriptedBrain(adapters)
        await brain.start()
        settings = CloningSettings(
            cloning_port=0, cloning_metrics_port=0, drain_seconds=0, redis_url=redis_endpoint.url,
            s3_endpoint_url=s3_endpoint.url, s3_bucket=bucket, tenant=tenant, brain_address=brain.address,
        )  # fmt: skip
        async with open_server(settings, trainer=ScriptedTrainer()) as server:
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = CloningServiceStub(channel)
                yield Served(
                    crowd=Crowd([stub], chance=random.Random(1)),
                    remains=Remains(
                        cloning=stub,
                        # No student has a model, so it is not asked.
                        brain=BrainServiceStub(channel),
                        adapters=adapters,
                        blobs=blobs,
                        redis=redis,
                        tenant=tenant,
                    ),
                    watched=watch_cloning_server(
                        channel, name="server", metrics_url=f"http://127.0.0.1:{server.metrics_port}/metrics"
                    ),
                )
        await brain.stop()


async def test_a_clone_that_nobody_was_told_of_is_doubled(served: Served) -> None:
    history = await served.crowd.start("student")
    assert await doubled([history], served.remains) == []
    assert await doubled([], served.remains) == [history.clone_id]


async def test_a_clone_that_was_forgotten_or_did_not_end_is_lost(served: Served) -> None:
    history = await served.crowd.start("student")
    assert lost([history]) == [f"{history.clone_id}: accepted"]
    await served.crowd.follow(history)
    assert lost([history]) == []
    forgotten = CloneHistory(clone_id="clone_forgotten", student_id="student")
    await served.crowd.follow(forgotten)
    assert lost([history, forgotten]) == ["clone_forgotten: not found after accepted"]


async def test_whatever_is_left_of_a_deleted_student_is_found(served: Served) -> None:
    remains = served.remains
    deleted = CloneHistory(clone_id="clone_gone", student_id="deleted-1")
    assert await violations([], remains, deleted=[deleted]) == [
        "clone_gone: is accepted although its student was deleted",
    ]
    deleted.is_gone = True
    assert await violations([], remains, deleted=[deleted]) == []
    key = f"{{aivo:{remains.tenant}}}:lane:deleted-1"
    await remains.redis.rpush(key, "clone_gone")
    await remains.blobs.create(f"{remains.tenant}/deleted-1/active.json", b"{}")
    faults = await violations([], remains, deleted=[deleted])
    await remains.redis.delete(key)
    assert [fault for fault in faults if "although" in fault] == [
        "clone_gone: is in Valkey although the student was deleted",
        "deleted-1: is in Valkey although the student was deleted",
        f"deleted-1: {remains.tenant}/deleted-1/active.json is in S3 although the student was deleted",
    ]


async def test_a_task_that_crashed_is_found_while_it_is_down_and_once_it_runs_again(served: Served) -> None:
    fault = ""

    async def says(words: str) -> bool:
        nonlocal fault
        fault = await served.watched.fault()
        return words in fault if words else not fault

    await until(lambda: says(""), seconds=20)
    remains = served.remains
    key, channel = (f"{{aivo:{remains.tenant}}}:{name}" for name in ("queued", "changes"))
    # No sorted set, which no code expects.
    await remains.redis.set(key, "corrupt")
    await remains.redis.publish(channel, "any")
    await until(lambda: says("server is unhealthy: Worker crashed"), seconds=20)
    await remains.redis.delete(key)
    await until(lambda: says("server is healthy, but of"), seconds=20)
    assert "['Worker'] crashed" in fault
