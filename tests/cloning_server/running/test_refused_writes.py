"""A clone store that answers and refuses writes: nothing dies, both healths say so, and all goes on afterwards."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from cloning_server.app import CLONING_SERVICE
from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.upkeep_store import UpkeepStore
from mesh.errors import CloneStoreUnavailable
from mesh.rpc.health import LIVENESS
from mesh.valkey.connection import open_redis
from testing.parts.stores import RedisEndpoint
from testing.waiting import until as until_holds
from tests.cloning_server.conftest import Cloning, CloningStub, order, raised, start_clone, watch_all

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Refuse = Callable[[Redis, Path], Awaitable[None]]


async def demand_a_replica(redis: Redis, _: Path) -> None:
    await redis.config_set("min-replicas-to-write", 1)


async def accept_no_replica(redis: Redis, _: Path) -> None:
    await redis.config_set("min-replicas-to-write", 0)


async def fail_to_save(redis: Redis, folder: Path) -> None:
    """Has a snapshot fail, as on a full disk: its file can't take the place of a folder that is not empty."""
    (folder / "dump.rdb" / "in the way").mkdir(parents=True)
    await redis.config_set("save", "3600 1")
    await redis.bgsave()
    await until_saved(redis, "err")


async def save(redis: Redis, folder: Path) -> None:
    (folder / "dump.rdb" / "in the way").rmdir()
    (folder / "dump.rdb").rmdir()
    await redis.bgsave()
    await until_saved(redis, "ok")


async def until_saved(redis: Redis, status: str) -> None:
    async def holds() -> bool:
        info = await redis.info("persistence")
        return bool(info["rdb_last_bgsave_status"] == status and not info["rdb_bgsave_in_progress"])

    await until_holds(holds, seconds=20)


REFUSALS = {"NOREPLICAS": (demand_a_replica, accept_no_replica), "MISCONF": (fail_to_save, save)}


@asynccontextmanager
async def refusing(url: str, folder: Path, code: str) -> AsyncIterator[None]:
    """Has a Valkey refuse all writes with this code until the end."""
    begin, end = REFUSALS[code]
    async with open_redis(url) as redis:
        await begin(redis, folder)
        yield
        await end(redis, folder)


class Watched:
    """A server, and what its health says."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = CloningStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def standard(self, service: str = CLONING_SERVICE) -> int:
        response = await self._health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(response.status)

    async def counts_are(self, *, queued: int, running: int) -> bool:
        health = await self.stub.GetHealth(pb.GetHealthRequest())
        return (health.queued_clones, health.running_clones) == (queued, running)

    async def until_both_say(self, status: str, serving: int) -> pb.GetHealthResponse:
        """Returns health once `GetHealth` and `grpc.health` say so."""
        health = pb.GetHealthResponse()

        async def holds() -> bool:
            nonlocal health
            health = await self.stub.GetHealth(pb.GetHealthRequest())
            return (health.status, await self.standard()) == (status, serving)

        await until_holds(holds, seconds=30)
        return health


@pytest.mark.parametrize("code", REFUSALS)
async def test_clones_outlive_a_store_that_refuses_writes_and_both_healths_tell(
    code: str, cloning: Cloning, own_redis: RedisEndpoint, tmp_path: Path
) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    # Turns of housekeeping too, and renewals of leases, fall into the time of the refusals.
    cloning.set(redis_url=own_redis.url, housekeeping_seconds=0.1, lease_seconds=1.0)
    async with cloning.connect() as channel:
        server = Watched(channel)
        await server.until_both_say("healthy", SERVING)
        running_id = await start_clone(server.stub)
        await gate.reached.wait()
        waiting_id = await start_clone(server.stub, "waiting")
        async with refusing(own_redis.url, tmp_path / "valkey", code):
            health = await server.until_both_say("unhealthy", NOT_SERVING)
            assert f"clone_store: the clone store refuses calls ({code})" in health.reason
            # It still reads. Counts may be a second old.
            await until_holds(lambda: server.counts_are(queued=1, running=1), seconds=20)
            assert await server.standard(LIVENESS) == SERVING, "a restart would not help"
            with raised() as failure:
                await server.stub.StartClone(order("refused"))
            assert isinstance(failure.error, CloneStoreUnavailable)
            gate.open()
            # The running clone can't write its progress, and the worker can't claim the waiting one.
            await asyncio.sleep(1)
        changes = [(await watch_all(server.stub, clone_id))[-1] for clone_id in (running_id, waiting_id)]
        assert [(change.status, change.attempt) for change in changes] == [("completed", 1)] * 2
        await server.until_both_say("healthy", SERVING)
        health = await server.stub.GetHealth(pb.GetHealthRequest())
        assert health.reason == ""


async def test_every_write_of_the_store_is_refused_with_a_typed_error(own_redis: RedisEndpoint, tmp_path: Path) -> None:
    async with open_redis(own_redis.url) as redis:
        store, upkeep_store = CloneStore(redis), UpkeepStore(redis)
        await store.check()
        async with refusing(own_redis.url, tmp_path / "valkey", "NOREPLICAS"):
            upkeep = (upkeep_store.take_turn(seconds=1), upkeep_store.erase("nobody"))
            for write in (store.check(), store.write_pace(1.0), *upkeep):
                with pytest.raises(CloneStoreUnavailable, match="refuses calls"):
                    await write
            # Reads go on.
            assert await store.count() == (0, 0)
        await store.check()
