"""Background tasks of a brain that crash, and an alert store that refuses writes, through the brain's real edge."""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from brain_server.app import BRAIN_SERVICE, open_server
from brain_server.settings import BrainSettings
from brain_server.torch_engine.batch import Batch
from brain_server.torch_engine.compute.sequences import TokenSequence
from mesh import background
from mesh.alerts.alert_store import AlertStore
from mesh.background import TaskFailed
from mesh.errors import AlertStoreUnavailable, ModelNotLoaded
from mesh.rpc.errors import error_of
from mesh.rpc.health import LIVENESS
from mesh.valkey.connection import open_redis
from testing.parts.stores import S3Endpoint, valkey
from testing.waiting import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SAD = pb.GenerateRequest(
    prompt="i want to kill myself", context=pb.StudentContext(student_id="ada", grade="4"), max_tokens=2
)


@pytest.fixture
def settings(small_llama: Path, s3_endpoint: S3Endpoint, bucket: str) -> BrainSettings:
    return BrainSettings(
        base_model=str(small_llama), model_cache_dir=small_llama.parent, device="cpu",
        kv_cache_bytes=64 * 1024 * 1024, s3_endpoint_url=s3_endpoint.url, s3_bucket=bucket, brain_port=0,
        brain_metrics_port=0, drain_seconds=1, tenant=f"t{uuid.uuid4().hex[:8]}",
    )  # fmt: skip


class Health:
    """Both healths of a brain."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = BrainServiceStub(channel)
        self._standard = health_pb2_grpc.HealthStub(channel)

    async def standard(self, service: str) -> int:
        return int((await self._standard.Check(health_pb2.HealthCheckRequest(service=service))).status)

    async def until_both_say(self, statuses: set[str], serving: int) -> pb.GetHealthResponse:
        """Returns health once `GetHealth` says one of these and `grpc.health` that."""
        health = pb.GetHealthResponse()

        async def holds() -> bool:
            nonlocal health
            health = await self.stub.GetHealth(pb.GetHealthRequest())
            return health.status in statuses and await self.standard(BRAIN_SERVICE) == serving

        await until(holds, seconds=60)
        return health


async def test_a_batch_that_keeps_crashing_ends_its_calls_and_then_the_server(
    settings: BrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(batch: Batch, broken_sequences: Sequence[TokenSequence]) -> None:
        raise LookupError("a bug")

    async def serve() -> None:
        async with open_server(settings) as server:
            await server.start()
            serve_task = asyncio.create_task(server.serve_until_signal())
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                health = Health(channel)
                await health.until_both_say({"healthy", "degraded"}, SERVING)
                monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 1.0)
                monkeypatch.setattr(Batch, "_settle", crash)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await health.stub.Generate(pb.GenerateRequest(prompt="Why?"), timeout=60)
                assert isinstance(error_of(caught.value), ModelNotLoaded)
                report = await health.until_both_say({"unhealthy"}, NOT_SERVING)
                assert report.reason.startswith("TorchEngine crashed (LookupError) and starts again soon")
                assert await health.standard(LIVENESS) == SERVING
                monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.001)
                while not serve_task.done():
                    # The batch crashes by itself: its first step, which wipes rows and slots, is settled too.
                    with pytest.raises(grpc.aio.AioRpcError):
                        await health.stub.Generate(pb.GenerateRequest(prompt="Why?"), timeout=60)
                    await asyncio.sleep(0.01)
            metrics = generate_latest(server.registry).decode()
            assert 'aivo_background_restarts_total{task="TorchEngine"} 5.0' in metrics
            assert f'aivo_serving{{service="{LIVENESS}"}} 0.0' in metrics

    with pytest.raises(TaskFailed, match="TorchEngine"):
        await asyncio.wait_for(serve(), 120)


async def test_an_alert_waits_for_a_store_that_refuses_writes_and_health_tells(
    settings: BrainSettings, tmp_path: Path
) -> None:
    async with (
        valkey(tmp_path) as endpoint,
        open_redis(endpoint.url) as redis,
        open_server(settings.model_copy(update={"redis_url": endpoint.url})) as server,
    ):
        store = AlertStore(redis, tenant=settings.tenant)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            health = Health(channel)
            await health.until_both_say({"healthy", "degraded"}, SERVING)
            await redis.config_set("min-replicas-to-write", 1)
            with pytest.raises(AlertStoreUnavailable, match="NOREPLICAS"):
                await store.check()
            assert (await health.stub.Generate(SAD)).safety.alert

            async def tells() -> bool:
                report = await health.stub.GetHealth(pb.GetHealthRequest())
                return "alert_store: the alert store refuses calls (NOREPLICAS)" in report.reason

            await until(tells, seconds=20)
            report = await health.until_both_say({"degraded"}, SERVING)
            assert "crashed" not in report.reason, "the recorder waits"
            await redis.config_set("min-replicas-to-write", 0)

            async def is_recorded() -> bool:
                return [alert.student_id for alert in await store.list_latest(below=None, limit=9)] == ["ada"]

            await until(is_recorded, seconds=20)
            assert (
                'aivo_background_restarts_total{task="AlertRecorder"} 0.0' in generate_latest(server.registry).decode()
            )
