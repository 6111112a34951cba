"""The AIVO that faults strike: two cloning servers, a brain and the gateway, with proxies before both stores."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from transformers import AutoTokenizer

from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from testing import clock
from testing.models.small_models import write_small_llama
from testing.parts.fault_proxy import FaultProxy
from testing.parts.servers import RunningServer, cloning_server
from testing.parts.stack import Stack, stack
from testing.parts.stores import RedisEndpoint, S3Endpoint, seaweed, valkey

LEASE_SECONDS = 4.0
BUCKET = "chaos"
_ENV = {
    **clock.ENV,
    "LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "TRAINER_CPUS": "1",
    "PARALLEL_CLONES": "2",
    # Short trainings: many steps on eight responses make a random model repeat itself, which the gate refuses.
    "CLONE_EPOCHS": "1",
    "CLONE_LEAST_STEPS": "0",
    "TRAINER_PAUSE_SECONDS": "1",
    "HEARTBEAT_SECONDS": "2",
    # The invariants look for every clone's version in the bucket.
    "KEEP_VERSIONS": "100",
    # A server that believes a clock which is a year ahead would delete every student.
    "RETENTION_DAYS": "30",
    "RETENTION_LARGEST_SHARE": "1",
    "HOUSEKEEPING_SECONDS": "2",
    # Two attempts in less time than S3 hangs for.
    "S3_READ_TIMEOUT_SECONDS": "1",
    # How long a brain that hears of nothing answers with a deleted student's model.
    "ADAPTER_OUTAGE_SECONDS": "10",
    "DRAIN_SECONDS": "0",
    # A brain may be slow while two servers train on the same cores.
    "STALL_SECONDS": "120",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aivo:
    """A running AIVO.

    Attributes:
        cloning: The cloning servers, each with its own Ray.
        brain: The brain.
        redis: Valkey itself; the servers reach it through `redis_proxy`.
        s3: S3 itself; the servers reach it through `s3_proxy`.
        stack: All but the second cloning server.
        outage_seconds: How long S3 is down or hangs.
    """

    cloning: Sequence[RunningServer]
    brain: RunningServer
    redis: RedisEndpoint
    redis_proxy: FaultProxy
    s3: S3Endpoint
    s3_proxy: FaultProxy
    stack: Stack
    outage_seconds: float


@contextlib.asynccontextmanager
async def open_aivo(folder: Path, *, models: Path, outage_seconds: float) -> AsyncIterator[Aivo]:
    """Runs AIVO on a small random base model.

    Args:
        folder: For the data and logs of all parts.
        models: Cache of base models, for the tokenizer of the default one.
        outage_seconds: How long S3 is down or hangs when it is struck.
    """
    s3_folder, redis_folder, base_folder = await asyncio.to_thread(_make_folders, folder)
    await asyncio.to_thread(_write_base_model, base_folder, models)
    async with contextlib.AsyncExitStack() as parts:
        s3 = await parts.enter_async_context(seaweed(s3_folder))
        redis = await parts.enter_async_context(valkey(redis_folder))
        s3_proxy = await parts.enter_async_context(FaultProxy(_port_of(s3.url)))
        redis_proxy = await parts.enter_async_context(FaultProxy(_port_of(redis.url)))
        whole_stack = await parts.enter_async_context(
            stack(
                folder,
                s3=replace(s3, url=f"http://127.0.0.1:{s3_proxy.port}"),
                redis=replace(redis, url=f"redis://127.0.0.1:{redis_proxy.port}/0"),
                bucket=BUCKET,
                models=models,
                env={**_ENV, "BASE_MODEL": str(base_folder)},
            )
        )
        another = await parts.enter_async_context(cloning_server(folder / "another", env=whole_stack.cloning_env))
        cloning = (whole_stack.cloning_server, another)
        for server in cloning:
            # Faster than an orderly end, which waits for Ray.
            parts.push_async_callback(server.part.lose)
        yield Aivo(
            cloning=cloning,
            brain=whole_stack.brain_server,
            redis=redis,
            redis_proxy=redis_proxy,
            s3=s3,
            s3_proxy=s3_proxy,
            stack=whole_stack,
            outage_seconds=outage_seconds,
        )


def _port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _make_folders(folder: Path) -> list[Path]:
    folders = [folder / name for name in ("s3", "valkey", "base")]
    for path in folders:
        path.mkdir()
    return folders


def _write_base_model(folder: Path, models: Path) -> None:
    write_small_llama(folder, AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, models).path))
