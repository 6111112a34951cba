"""The brain as a process: its settings, its start, its answers with the real model, and its drain."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from brain_server.settings import BrainSettings
from mesh.adapters.notices import announce
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.main_brain.files import MainBrainFiles
from mesh.settings import InvalidSettings, load_settings
from testing.adapters import publish
from testing.models.random_adapters import random_weights, recipe
from testing.parts.stores import RedisEndpoint, S3Endpoint

if TYPE_CHECKING:
    # The generated code has it for type checkers alone.
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub

SERVICE = "aivo.brain.v1.BrainService"
BUCKET = "test-brain-app"
SERVING = health_pb2.HealthCheckResponse.SERVING
SEED_ASSESSMENT = {
    "student_response": "Plants make food from sunlight",
    "criteria": {"subject": "Science", "grade": "5", "learning_objective": "Understand photosynthesis"},
}


@dataclass(slots=True, kw_only=True)
class Brain:
    """A brain in its own process.

    Attributes:
        process: The process.
        addresses: The fields of its log event `serving`.
        first_health: Its health as soon as it served.
        stub: Calls it.
        channel: A channel to it, for its other services.
    """

    process: Process
    addresses: dict[str, Any]
    first_health: pb.GetHealthResponse
    stub: "BrainServiceAsyncStub"
    channel: grpc.aio.Channel


async def read_until(process: Process, event: str) -> dict[str, Any]:
    """Returns the fields of the first log line with this event."""
    assert process.stderr is not None
    async for line in process.stderr:
        facts: dict[str, Any] = json.loads(line)
        if facts["event"] == event:
            return facts
    raise AssertionError(f"the server ended without logging {event}")


@contextlib.asynccontextmanager
async def running_brain(*, bucket: str, files: MainBrainFiles, **env: str) -> AsyncIterator[Brain]:
    """Runs a brain on free ports, and kills it if it still runs on exit."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "brain_server"),
        env={
            **os.environ,
            "BRAIN_PORT": "0",
            "BRAIN_METRICS_PORT": "0",
            "MODEL_CACHE_DIR": str(files.path.parent),
            "S3_BUCKET": bucket,
            "LOG_FORMAT": "json",
            **env,
        },
        stderr=PIPE,
        stdout=PIPE,
    )
    try:
        addresses = await read_until(process, "serving")
        async with grpc.aio.insecure_channel(addresses["address"]) as channel:
            stub: BrainServiceAsyncStub = BrainServiceStub(channel)
            health = await stub.GetHealth(pb.GetHealthRequest(), wait_for_ready=True)
            yield Brain(process=process, addresses=addresses, first_health=health, stub=stub, channel=channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def wait_serving(brain: Brain) -> None:
    """Returns once the base model is loaded."""
    watch = health_pb2_grpc.HealthStub(brain.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    async for message in watch:
        if message.status == SERVING:
            return


@pytest.fixture(scope="module")
async def brain(s3_endpoint: S3Endpoint, redis_endpoint: RedisEndpoint, files: MainBrainFiles) -> AsyncIterator[Brain]:
    """A brain whose cached pointers expire after an hour, so that it sees a new version only by a notice."""
    env = {"S3_ENDPOINT_URL": s3_endpoint.url, "REDIS_URL": redis_endpoint.url, "ADAPTER_POINTER_TTL_SECONDS": "3600"}
    async with running_brain(bucket=BUCKET, files=files, **env) as process:
        await wait_serving(process)
        yield process


def test_the_environment_has_defaults_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BrainSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    settings = load_settings(BrainSettings)
    assert (settings.brain_host, settings.brain_port, settings.brain_metrics_port) == ("127.0.0.1", 50051, 9801)
    assert (settings.base_model, settings.device, settings.quantization) == ("SmolLM2-135M-Instruct", "auto", "none")


def test_all_invalid_settings_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    invalid_values = {
        "BRAIN_PORT": "99999",
        "QUEUE_LIMIT": "0",
        "DEVICE": "gpu",
        "TENANT": "A/B",
        "DRAIN_SECONDS": "-1",
    }
    invalid_values["REDIS_URL"] = "localhost"
    for name, value in invalid_values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as caught:
        load_settings(BrainSettings)
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == set(invalid_values)


async def test_the_command_exits_with_a_report_of_its_invalid_settings(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "brain_server"), env={"BRAIN_PORT": "many", "PATH": str(tmp_path)}, stderr=PIPE
    )
    _, output = await process.communicate()
    assert process.returncode == 2
    assert b"BRAIN_PORT" in output
    assert b"Traceback" not in output


async def test_the_server_answers_before_its_model_is_loaded(brain: Brain) -> None:
    assert brain.first_health.status == "loading"
    assert not brain.first_health.model_loaded
    assert brain.first_health.model_name == "SmolLM2-135M-Instruct"

    health = await brain.stub.GetHealth(pb.GetHealthRequest())
    assert (health.status, health.reason, health.model_loaded) == ("healthy", "", True)


async def test_a_student_without_a_model_is_answered_by_the_base_model_and_told_why(brain: Brain) -> None:
    request = pb.GenerateStreamRequest(
        prompt="Say hello.", context=pb.StudentContext(student_id="ada", grade="5"), temperature=0, max_tokens=8
    )
    messages = [message async for message in brain.stub.GenerateStream(request)]

    finished = messages[-1].finished
    assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
    assert "".join(message.text for message in messages) == finished.response
    assert finished.fallback == pb.FALLBACK_REASON_NO_STUDENT_MODEL
    assert 1 <= finished.usage.completion_tokens <= 8


async def test_a_new_version_answers_as_soon_as_it_is_announced(
    brain: Brain, s3_endpoint: S3Endpoint, redis_endpoint: RedisEndpoint, files: MainBrainFiles
) -> None:
    async def version_of_reply() -> int:
        context = pb.StudentContext(student_id="grace")
        reply = await brain.stub.Generate(pb.GenerateRequest(prompt="Hi", context=context, max_tokens=1))
        return reply.adapter.version

    async with (
        S3Blobs(bucket=BUCKET, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs,
        Redis.from_url(redis_endpoint.url) as redis,
        asyncio.timeout(60),
    ):
        store = AdapterStore(blobs, announce=partial(announce, redis))
        for version in (1, 2):
            assert await version_of_reply() == version - 1
            await publish(store, "grace", random_weights(version), recipe=recipe(base_digest=files.digest))
            # The notice is on its way. Without it, the new version would not answer within the test.
            while await version_of_reply() != version:
                pass


async def test_the_seeds_assessment_gets_a_whole_verdict(brain: Brain) -> None:
    response = await brain.stub.Assess(ParseDict(SEED_ASSESSMENT, pb.AssessRequest()))

    assert 0 <= response.correctness <= 100
    assert response.understanding_level in {"excellent", "good", "developing", "beginning"}
    assert response.feedback
    assert response.next_steps
    assert response.model == "SmolLM2-135M-Instruct"


async def test_the_students_adapter_writes_the_feedback_and_leaves_the_verdict_as_it_is(
    brain: Brain, s3_endpoint: S3Endpoint, files: MainBrainFiles
) -> None:
    async with S3Blobs(bucket=BUCKET, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs:
        await publish(AdapterStore(blobs), "linus", random_weights(1), recipe=recipe(base_digest=files.digest))
    own, general = [
        await brain.stub.Assess(ParseDict({**SEED_ASSESSMENT, "context": context}, pb.AssessRequest()))
        for context in ({"student_id": "linus"}, {})
    ]
    assert (own.adapter.student_id, own.adapter.version) == ("linus", 1)
    assert not own.HasField("fallback")
    assert general.fallback == pb.FALLBACK_REASON_NO_STUDENT
    assert own.probabilities == general.probabilities
    assert own.grader == general.grader


async def test_the_metrics_show_the_engine_and_the_calls(brain: Brain) -> None:
    await brain.stub.Generate(pb.GenerateRequest(prompt="Hi", max_tokens=2))
    url = f"http://127.0.0.1:{brain.addresses['metrics_port']}/metrics"
    figures = (await asyncio.to_thread(lambda: urlopen(url).read())).decode()

    tokens = next(line for line in figures.splitlines() if line.startswith("aivo_engine_tokens_total "))
    assert float(tokens.split()[1]) >= 1
    assert 'aivo_engine_adapter_lookups_total{hit="true",tier="host"}' in figures
    assert 'aivo_reply_first_token_seconds_count{model="' in figures
    assert 'aivo_rpc_calls_total{code="OK",method="Generate"' in figures


async def test_a_store_that_is_down_is_reported_and_does_not_stop_the_server(
    files: MainBrainFiles, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with running_brain(bucket="none", files=files, S3_ENDPOINT_URL=url, BASE_MODEL="/nowhere") as brain:
        health = brain.first_health
        while health.status == "loading":
            health = await brain.stub.GetHealth(pb.GetHealthRequest())

        assert (health.status, health.model_loaded) == ("unhealthy", False)
        assert "/nowhere" in health.reason
        assert [dependency.available for dependency in health.dependencies] == [False]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await brain.stub.Generate(pb.GenerateRequest(prompt="Hi"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_server_drains_on_sigterm(brain: Brain) -> None:
    """Must be the last test in this file, as it stops the server that the tests share."""
    request = pb.GenerateStreamRequest(prompt="Count from one to twenty.", temperature=0, max_tokens=24)
    stream = aiter(brain.stub.GenerateStream(request))
    messages = [await anext(stream)]

    brain.process.send_signal(signal.SIGTERM)
    await read_until(brain.process, "draining")
    messages.extend([message async for message in stream])

    assert messages[-1].HasField("finished")
    assert not messages[-1].finished.HasField("error")
    assert await brain.process.wait() == 0
    assert brain.process.stdout is not None
    assert await brain.process.stdout.read() == b""
