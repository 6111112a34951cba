"""A cloning server on a real Ray cluster: its nodes come and go, and no clone is lost with one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf import json_format

from testing.baseline import start_body
from testing.parts.part import Part
from testing.parts.ray_cluster import ACTOR, RayCluster, ray_cluster
from testing.parts.servers import cloning_server
from testing.parts.stores import S3Endpoint
from tests.cloning_server.conftest import STUDENT, Cloning, CloningStub, until, watch_all


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[RayCluster]:
    async with ray_cluster(tmp_path) as running:
        yield running


def env_of(cloning: Cloning, cluster: RayCluster, s3: S3Endpoint, cache_dir: Path) -> dict[str, str]:
    """What a server of this test reads, whose one trainer is the cluster's."""
    settings = cloning.settings
    return {
        **s3.env,
        **cluster.env,
        "RAY_ADDRESS": cluster.address,
        "TRAINER_CPUS": "1",
        "TRAINER_PAUSE_SECONDS": "0.1",
        "REDIS_URL": settings.redis_url,
        "S3_ENDPOINT_URL": s3.url,
        "S3_BUCKET": settings.s3_bucket,
        "TENANT": settings.tenant,
        "BRAIN_ADDRESS": settings.brain_address,
        "MODEL_CACHE_DIR": str(cache_dir.resolve()),
        "DEVICE": "cpu",
        # Fine-tuning takes far longer than to learn of its beginning and to lose the node, on the fastest machine too.
        "CLONE_EPOCHS": "3",
        "DRAIN_SECONDS": "0",
    }


@pytest.fixture
async def server(
    tmp_path: Path, cluster: RayCluster, cloning: Cloning, s3_endpoint: S3Endpoint, cache_dir: Path
) -> AsyncIterator[tuple[Part, CloningStub]]:
    """A cloning server in a process and a folder of its own, and a client of it."""
    env = env_of(cloning, cluster, s3_endpoint, cache_dir)
    running = cloning_server(tmp_path / "server", env=env)
    async with running as server, grpc.aio.insecure_channel(server.address) as channel:
        yield server.part, CloningStub(channel)


@pytest.mark.slow
async def test_a_clone_waits_for_a_node_and_survives_its_loss_as_one_version(
    cluster: RayCluster, server: tuple[Part, CloningStub], cloning: Cloning
) -> None:
    part, stub = server
    request = json_format.ParseDict(start_body(STUDENT), pb.StartCloneRequest())
    clone_id = (await stub.StartClone(request)).clone_id
    health = await stub.GetHealth(pb.GetHealthRequest())
    assert (health.queued_clones, health.running_clones, health.model_loaded) == (1, 0, False)
    async with contextlib.AsyncExitStack() as nodes:
        first = await nodes.enter_async_context(cluster.node("first"))
        await until(stub, clone_id, "fine_tuning")
        assert first.runs(ACTOR)
        # Before another node is started, which takes seconds: on a fast machine the clone would end meanwhile.
        await first.lose()
        second = await nodes.enter_async_context(cluster.node("second"))
        changes = await watch_all(stub, clone_id)
        assert second.runs(ACTOR)

        assert (changes[-1].status, changes[-1].attempt) == ("completed", 2)
        assert [change.sequence for change in changes] == list(range(1, len(changes) + 1))
        attempts = (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).attempts
        assert [(attempt.number, attempt.outcome) for attempt in attempts] == [
            (1, "TRAINER_UNAVAILABLE"),
            (2, "completed"),
        ]
        (version,) = await cloning.adapters.list_versions(STUDENT)
        assert version.recipe.clone_id == clone_id

        assert await part.stop() == 0
        # Its trainer goes with it, and the cluster is free for others.
        while second.runs(ACTOR):  # noqa: ASYNC110 - a process of someone else's
            await asyncio.sleep(0.1)
