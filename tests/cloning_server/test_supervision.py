"""Background tasks of a cloning server that crash: they start again, or the process ends, and health says so."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloning_server.app import CLONING_SERVICE, open_server
from cloning_server.running.journal import Journal
from cloning_server.running.runner import CloneRunner
from mesh import background
from mesh.background import FAILED_STATUS, MAX_RESTARTS, TaskFailed
from testing.parts.stores import S3Endpoint
from testing.waiting import until
from tests.cloning_server.conftest import BUCKET, Cloning, CloningStub, start_clone, watch_all

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# The command as it is, with short pauses and without Ray, which takes long to start and has no part in this.
SERVE_WITHOUT_RAY = """
import asyncio

import cloning_server.app as app
from cloning_server.__main__ import main
from mesh import background
from testing.scripted.trainer import ScriptedTrainer

class Trainer(background.BackgroundTask, ScriptedTrainer):
    def __init__(self, settings):
        ScriptedTrainer.__init__(self)

    async def _run(self):
        await asyncio.Event().wait()

background.FIRST_PAUSE_SECONDS = 0.01
app.RayTrainer = Trainer
raise SystemExit(main())
"""


async def corrupt_queue(cloning: Cloning) -> str:
    """Makes every claim raise what no code expects: the queue is no sorted set. Returns its key."""
    key = f"{{aivo:{cloning.settings.tenant}}}:queued"
    await cloning.redis.set(key, "not a sorted set")
    return key


async def test_a_worker_that_crashes_starts_again_and_both_healths_tell(
    cloning: Cloning, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough to be seen, and not waited for in full.
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 1.0)
    async with cloning.connect() as channel:
        stub, standard = CloningStub(channel), health_pb2_grpc.HealthStub(channel)
        health = pb.GetHealthResponse()

        async def both_say(status: str, serving: int) -> bool:
            nonlocal health
            health = await stub.GetHealth(pb.GetHealthRequest())
            check = await standard.Check(health_pb2.HealthCheckRequest(service=CLONING_SERVICE))
            return (health.status, check.status) == (status, serving)

        await until(lambda: both_say("healthy", SERVING), seconds=20)
        key = await corrupt_queue(cloning)
        # Wakes the worker.
        await cloning.redis.publish(f"{{aivo:{cloning.settings.tenant}}}:changes", "any")
        await until(lambda: both_say("unhealthy", NOT_SERVING), seconds=20)
        assert "Worker crashed (" in health.reason
        await cloning.redis.delete(key)
        await until(lambda: both_say("healthy", SERVING), seconds=20)
        assert (await watch_all(stub, await start_clone(stub)))[-1].status == "completed"


async def test_a_clone_whose_run_crashed_is_run_again(cloning: Cloning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.01)
    run, crashes = CloneRunner.run, 0

    async def crash_once(self: CloneRunner, journal: Journal) -> None:
        nonlocal crashes
        crashes += 1
        if crashes == 1:
            raise RuntimeError("a bug that the runner does not catch")
        await run(self, journal)

    monkeypatch.setattr(CloneRunner, "run", crash_once)
    cloning.set(lease_seconds=1.0)
    async with cloning.serve() as stub:
        # Nobody renews the lease of a run that is gone, so the worker gets the clone again once it has expired.
        changes = await asyncio.wait_for(watch_all(stub, await start_clone(stub)), 30)
    assert changes[-1].status == "completed"


async def test_a_worker_that_keeps_crashing_ends_the_server(cloning: Cloning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.01)
    await corrupt_queue(cloning)

    async def serve() -> None:
        async with open_server(cloning.settings, trainer=cloning.trainer) as server:
            await server.serve_until_signal()

    with pytest.raises(TaskFailed, match=f"Worker crashed, after {MAX_RESTARTS} restarts"):
        await asyncio.wait_for(serve(), 60)


async def test_a_process_whose_worker_keeps_crashing_ends_with_a_status_of_its_own(
    cloning: Cloning, s3_endpoint: S3Endpoint
) -> None:
    await corrupt_queue(cloning)
    env = {
        **os.environ,
        "S3_ENDPOINT_URL": s3_endpoint.url,
        "S3_BUCKET": BUCKET,
        "REDIS_URL": cloning.settings.redis_url,
        "TENANT": cloning.settings.tenant,
        "CLONING_PORT": "0",
        "CLONING_METRICS_PORT": "0",
        "LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVE_WITHOUT_RAY, env=env, stderr=PIPE)
    async with asyncio.timeout(120):
        _, stderr = await process.communicate()
    assert process.returncode == FAILED_STATUS, stderr.decode()
    lines = [json.loads(line) for line in stderr.splitlines()]
    crashes = [line for line in lines if line["event"].startswith("background_task_")]
    assert [line["task"] for line in crashes] == ["Worker"] * (MAX_RESTARTS + 1)
    assert crashes[-1]["event"] == "background_task_failed"
    assert [line["event"] for line in lines].index("background_task_failed") < len(lines) - 1, "it drains then"
