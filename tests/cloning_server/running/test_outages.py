"""Clones wait for a brain or a store that is down."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_model_service_pb2 as models_pb

from cloning_server.clone import CloneState
from mesh.errors import (
    BrainUnavailable,
    ModelNotLoaded,
)
from mesh.rpc.errors import error_from
from testing.parts.stores import RedisEndpoint, S3Endpoint, seaweed
from tests.cloning_server.conftest import STUDENT, Cloning, CloningStub, start_clone, until, watch, watch_all
from tests.cloning_server.running.conftest import STATUSES, statuses_of


async def test_a_clone_waits_for_a_brain_that_is_down(cloning: Cloning, stub: CloningStub) -> None:
    await cloning.brain.stop()
    clone_id = await start_clone(stub)
    await until(stub, clone_id, "deploying")
    await cloning.brain.start()
    assert (await watch_all(stub, clone_id))[-1].status == "completed"
    assert cloning.brain.warmed_versions == [(STUDENT, 1)] * 2


async def test_a_clone_outlives_a_brain_that_dies_while_it_loads_the_model(cloning: Cloning, stub: CloningStub) -> None:
    cloning.brain.hold.clear()
    clone_id = await start_clone(stub)
    await cloning.brain.warm_called.wait()
    await cloning.brain.stop()
    cloning.brain.hold.set()
    await cloning.brain.start()
    assert (await watch_all(stub, clone_id))[-1].status == "completed"


async def test_a_brain_whose_model_still_loads_is_waited_for(cloning: Cloning, stub: CloningStub) -> None:
    cloning.brain.faults.append(ModelNotLoaded("the base model is loading"))
    assert (await watch_all(stub, await start_clone(stub)))[-1].status == "completed"


async def test_a_brain_that_is_down_for_too_long_ends_the_clone(cloning: Cloning) -> None:
    cloning.set(deploy_timeout_seconds=0.3)
    await cloning.brain.stop()
    async with cloning.serve() as stub:
        last = (await watch_all(stub, await start_clone(stub)))[-1]
    assert last.status == "failed"
    error = error_from(last.error)
    assert isinstance(error, BrainUnavailable)
    assert "waited_seconds" in error.facts
    assert (last.model.version, last.model.active) == (1, False), "the version is there, and answers nobody"
    assert await cloning.adapters.resolve_active(STUDENT) is None


@pytest.fixture
async def own_s3(tmp_path: Path, s3_endpoint: S3Endpoint) -> AsyncIterator[S3Endpoint]:
    """A SeaweedFS of this test alone, to be stopped; the shared one set the credentials."""
    folder = tmp_path / "seaweed"
    folder.mkdir()
    async with seaweed(folder) as endpoint:
        yield endpoint


async def test_a_clone_waits_for_an_adapter_store_that_is_down(cloning: Cloning, own_s3: S3Endpoint) -> None:
    gate = cloning.trainer.gates[CloneState.OPTIMIZING]
    gate.shut()
    cloning.set(s3_endpoint_url=own_s3.url, s3_connect_timeout_seconds=0.2, s3_read_timeout_seconds=1)
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await gate.reached.wait()
        await own_s3.part.kill()
        gate.open()
        await until(stub, clone_id, "saving")
        await own_s3.part.start()
        # The brain of this test reads the other store; that it was told to warm a version is all it can show here.
        await until_left(stub, clone_id, "saving")
        clone = await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))
        # Numbers may have gaps: a write whose answer was lost in the outage took one.
        models = await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))
        assert [model.sha256 for model in models.models] == [clone.model.sha256]


async def test_a_clone_outlives_an_outage_of_the_clone_store(cloning: Cloning, own_redis: RedisEndpoint) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    cloning.set(redis_url=own_redis.url)
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await gate.reached.wait()
        await own_redis.part.kill()
        gate.open()
        await own_redis.part.start()
        changes = await watch_all(stub, clone_id)
    assert (changes[-1].status, changes[-1].attempt) == ("completed", 1)
    assert statuses_of(changes) == STATUSES


async def test_a_server_that_starts_before_its_clone_store_takes_clones_up_later(
    cloning: Cloning, own_redis: RedisEndpoint
) -> None:
    cloning.set(redis_url=own_redis.url)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await gate.reached.wait()
    gate.open()
    await own_redis.part.stop()
    async with cloning.serve() as stub:
        await own_redis.part.start()
        assert (await watch_all(stub, clone_id))[-1].status == "completed"


async def until_left(stub: CloningStub, clone_id: str, status: str) -> None:
    """Returns once the clone has been there and is elsewhere."""
    async for change in watch(stub, clone_id):
        if change.status != status:
            return
