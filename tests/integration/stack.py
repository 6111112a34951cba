"""The whole of AIVO as processes on free ports: both servers, the gateway, and the stores under them."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.stack import Part, RedisEndpoint, S3Endpoint, free_ports
from tests.stack_envoy import Edge, envoy

# Loading the base model, on a machine that is busy with other tests.
HEALTHY_SECONDS = 120
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A running AIVO.

    Attributes:
        brain: The brain server's process; its log is in `folder / "brain"`.
        cloning: The cloning server's process, likewise.
        edge: The gateway.
        brain_address: gRPC of the brain, not through the gateway.
        cloning_address: gRPC of the cloning server, likewise.
        brain_metrics_url: The brain's figures.
        cloning_env: What any cloning server of this AIVO reads, but for its ports.
    """

    brain: Part
    cloning: Part
    edge: Edge
    brain_address: str
    cloning_address: str
    brain_metrics_url: str
    cloning_env: Mapping[str, str]
    s3: S3Endpoint
    bucket: str
    redis: RedisEndpoint
    folder: Path

    async def healthy(self) -> None:
        """Returns when both servers say that they are."""
        async with asyncio.timeout(HEALTHY_SECONDS):
            await until_status(self.edge.brain_url, "healthy")
            await until_status(self.edge.cloning_url, "healthy")


async def until_status(url: str, status: str) -> dict[str, object]:
    """Asks for health until it says this word, and returns what it says then."""
    async with httpx.AsyncClient(base_url=url) as client:
        while True:
            with contextlib.suppress(httpx.TransportError, ValueError):
                health = (await client.get("/health")).json()
                if health.get("status") == status:
                    return dict(health)
            # Between tries, as a load balancer would.
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def stack(
    folder: Path, *, s3: S3Endpoint, redis: RedisEndpoint, bucket: str, models: Path
) -> AsyncIterator[Stack]:
    """Runs everything; both servers are healthy when it is entered."""
    brain_port, cloning_port, brain_metrics, cloning_metrics = free_ports(4)
    shared = {
        **s3.env,
        "S3_ENDPOINT_URL": s3.url,
        "S3_BUCKET": bucket,
        "REDIS_URL": redis.url,
        "MODEL_CACHE_DIR": str(models),
        "DEVICE": "cpu",
    }
    brain = _server(
        "brain_server",
        folder / "brain",
        port=brain_port,
        env={
            **shared,
            "BRAIN_PORT": str(brain_port),
            "BRAIN_METRICS_PORT": str(brain_metrics),
            # Short, so that a test can fill it.
            "QUEUE_LIMIT": "32",
        },
    )
    # Short, so that a test need not wait long for a server that is lost.
    cloning_env = {**shared, "BRAIN_ADDRESS": f"127.0.0.1:{brain_port}", "LEASE_SECONDS": "6"}
    cloning = _cloning_server(folder / "cloning", port=cloning_port, metrics_port=cloning_metrics, env=cloning_env)
    addresses = {"brain_address": f"127.0.0.1:{brain_port}", "cloning_address": f"127.0.0.1:{cloning_port}"}
    edge_folder = folder / "edge"
    edge_folder.mkdir()
    async with contextlib.AsyncExitStack() as running:
        edge = await running.enter_async_context(envoy(edge_folder, **addresses))
        for part in (brain, cloning):
            await part.start()
            running.push_async_callback(part.stop)
        whole = Stack(
            brain=brain,
            cloning=cloning,
            edge=edge,
            brain_metrics_url=f"http://127.0.0.1:{brain_metrics}/metrics",
            cloning_env=cloning_env,
            s3=s3,
            bucket=bucket,
            redis=redis,
            folder=folder,
            **addresses,
        )
        await whole.healthy()
        yield whole


@contextlib.asynccontextmanager
async def another_cloning_server(aivo: Stack, folder: Path) -> AsyncIterator[str]:
    """Runs one more cloning server on the same stores; yields its gRPC address."""
    port, metrics_port = free_ports(2)
    part = _cloning_server(folder / "another", port=port, metrics_port=metrics_port, env=aivo.cloning_env)
    await part.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await part.stop()


def _cloning_server(folder: Path, *, port: int, metrics_port: int, env: Mapping[str, str]) -> Part:
    ports = {"CLONING_PORT": str(port), "CLONING_METRICS_PORT": str(metrics_port)}
    return _server("cloning_server", folder, port=port, env={**env, **ports})


def _server(module: str, folder: Path, *, port: int, env: Mapping[str, str]) -> Part:
    folder.mkdir()

    async def listens() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True

    return Part([sys.executable, "-m", module], folder=folder, probe=listens, env=env)
