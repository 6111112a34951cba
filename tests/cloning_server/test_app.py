"""The server as a whole: its environment, its readiness, its end."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from cloning_server.app import CLONING_SERVICE, open_server
from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.registry import Registry
from cloning_server.settings import CloningSettings
from mesh.adapters.notices import Listener
from mesh.errors import ServerDraining
from mesh.settings import InvalidSettings, load_settings
from mesh.valkey.connection import MAX_CONNECTIONS, open_redis
from testing.parts.stores import RedisEndpoint
from testing.waiting import until as until_true
from tests.cloning_server.conftest import SEALING, STUDENT, Cloning, CloningStub, order, raised, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_the_environment_has_defaults_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CloningSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    settings = load_settings(CloningSettings)
    assert (settings.cloning_host, settings.cloning_port, settings.cloning_metrics_port) == ("127.0.0.1", 50052, 9802)
    assert (settings.redis_url, settings.brain_address) == ("redis://127.0.0.1:6390/0", "127.0.0.1:50051")
    assert settings.ray_address is None


def test_a_class_forms_by_default_where_a_gpu_has_room_for_it_and_wherever_it_is_asked_for() -> None:
    assert CloningSettings().clones_at_once == 1
    assert CloningSettings(trainer_gpus=1, class_size=6).clones_at_once == 6
    assert CloningSettings(trainers=2).clones_at_once == 2
    assert CloningSettings(parallel_clones=3).clones_at_once == 3
    assert CloningSettings(trainer_gpus=1, parallel_clones=1).clones_at_once == 1


def test_all_faults_of_the_environment_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "CLONING_PORT": "99999",
        "REDIS_URL": "localhost",
        "PARALLEL_CLONES": "0",
        # Ray's client, which can't stream.
        "RAY_ADDRESS": "ray://head:10001",
        "HEARTBEAT_SECONDS": "30",
        "DEVICE": "gpu",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as caught:
        load_settings(CloningSettings)
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == set(wrong)


@pytest.mark.parametrize(
    ("name", "value"), [("CLONING_PORT", "many"), ("BRAIN_ADDRESS", "10.0.0.1:50051,10.0.0.2:50051")]
)
async def test_the_command_ends_with_the_faults_of_its_environment(tmp_path: Path, name: str, value: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cloning_server",
        env={name: value, "PATH": str(tmp_path)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert f"{name}: ".encode() in stderr
    assert b"Traceback" not in stderr


async def test_the_server_serves_while_its_clone_store_answers(cloning: Cloning, own_redis: RedisEndpoint) -> None:
    cloning.set(redis_url=own_redis.url)
    async with cloning.connect() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        changes = aiter(health.Watch(health_pb2.HealthCheckRequest(service=CLONING_SERVICE)))

        async def until_it_is(status: int) -> None:
            while (await anext(changes)).status != status:
                pass

        await until_it_is(SERVING)
        await own_redis.part.stop()
        await until_it_is(NOT_SERVING)
        await own_redis.part.start()
        await until_it_is(SERVING)
        # Without a restart, and with nothing left over: calls are answered again.
        stub = CloningStub(channel)
        await until(stub, (await stub.StartClone(order())).clone_id, "completed")


async def test_a_clone_store_that_hangs_is_noticed(
    cloning: Cloning, own_redis: RedisEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.valkey.wakeups.SILENCE_SECONDS", 0.5)
    cloning.set(redis_url=own_redis.url)
    async with cloning.connect() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        changes = aiter(health.Watch(health_pb2.HealthCheckRequest(service=CLONING_SERVICE)))
        while (await anext(changes)).status != SERVING:
            pass
        async with open_redis(own_redis.url) as redis:
            # Connections stay open; nobody answers.
            await redis.client_pause(3_000, all=True)
        while (await anext(changes)).status != NOT_SERVING:
            pass
        while (await anext(changes)).status != SERVING:
            pass


async def test_a_clone_that_completes_has_told_the_brains_of_its_version(cloning: Cloning) -> None:
    moved: asyncio.Queue[str] = asyncio.Queue()
    listens = asyncio.Event()
    url, tenant = cloning.settings.redis_url, cloning.settings.tenant
    listener = Listener(
        url,
        tenant=tenant,
        on_moved=moved.put_nowait,
        on_deleted=lambda _student_id: 0,
        on_gap=listens.set,
        on_heard=lambda: None,
    )
    async with listener, cloning.serve() as stub:
        await listens.wait()
        await until(stub, (await stub.StartClone(order())).clone_id, "completed")

        assert await moved.get() == STUDENT


async def test_a_server_that_drains_says_so_and_takes_nothing_new(cloning: Cloning) -> None:
    settings = cloning.settings.model_copy(update={"drain_seconds": 20.0})
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with open_server(settings, trainer=cloning.trainer) as server:
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = CloningStub(channel)
            clone_id = (await stub.StartClone(order())).clone_id
            await gate.reached.wait()
            watching = asyncio.create_task(until(stub, clone_id, "completed"))
            # The watch holds the drain open until the clone is done.
            await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))
            stopping = asyncio.create_task(server.stop())
            health = await stub.GetHealth(pb.GetHealthRequest())
            while health.status != "draining":
                health = await stub.GetHealth(pb.GetHealthRequest())
            with raised() as failure:
                await stub.StartClone(order("another"))
            assert isinstance(failure.error, ServerDraining)
            gate.open()
            await watching
            await stopping


async def test_a_clone_completes_while_readers_take_all_their_connections(
    cloning: Cloning, redis: Redis, clones: CloneStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Redis] = []

    def open_and_keep(url: str) -> Redis:
        opened.append(open_redis(url))
        return opened[-1]

    monkeypatch.setattr("cloning_server.app.open_redis", open_and_keep)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = (await stub.StartClone(order())).clone_id
        await gate.reached.wait()
        # The first client is that of the calls. Each reader waits for what never comes.
        readers: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(opened[0].blpop("nothing")) for _ in range(MAX_CONNECTIONS)
        ]
        gate.open()

        async def is_complete() -> bool:
            return (await Registry.of(clones, sealing=SEALING).changes.find(clone_id)).state is CloneState.COMPLETED

        try:
            await until_true(is_complete, seconds=20)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
