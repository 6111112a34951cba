"""The whole of AIVO as processes on free ports: both servers, the gateway, and the stores under them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from testing.parts.envoy import Edge, envoy
from testing.parts.servers import RunningServer, brain_server, cloning_server
from testing.parts.stores import RedisEndpoint, S3Endpoint

# Loading the base model, on a machine that is busy with other tests.
HEALTHY_SECONDS = 120
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A running AIVO.

    Attributes:
        brain_server: The brain.
        cloning_server: The cloning server.
        edge: The gateway.
        brain_env: Variables of every brain of this AIVO, without its ports.
        cloning_env: Likewise, of every cloning server.
    """

    brain_server: RunningServer
    cloning_server: RunningServer
    edge: Edge
    brain_env: Mapping[str, str]
    cloning_env: Mapping[str, str]
    s3: S3Endpoint
    bucket: str
    redis: RedisEndpoint
    folder: Path

    async def wait_healthy(self) -> None:
        """Returns once both servers report that they are healthy."""
        async with asyncio.timeout(HEALTHY_SECONDS):
            await until_status(self.edge.brain_url, "healthy")
            await until_status(self.edge.cloning_url, "healthy")


async def until_status(url: str, status: str) -> dict[str, object]:
    """Polls health until it has this status, and returns the reply."""
    async with httpx.AsyncClient(base_url=url) as client:
        while True:
            with contextlib.suppress(httpx.TransportError, ValueError):
                health = (await client.get("/health")).json()
                if health.get("status") == status:
                    return dict(health)
            # Between two polls, as a load balancer would.
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def stack(
    folder: Path,
    *,
    s3: S3Endpoint,
    redis: RedisEndpoint,
    bucket: str,
    models: Path,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Stack]:
    """Runs everything, with these additional variables for the servers; yields once both are healthy."""
    shared = {
        **s3.env,
        "S3_ENDPOINT_URL": s3.url,
        "S3_BUCKET": bucket,
        "REDIS_URL": redis.url,
        "MODEL_CACHE_DIR": str(models),
        "DEVICE": "cpu",
        # As in `make up`.
        "MASTER_KEY": "5a" * 32,
        # Short, so that a test need not wait long for a lost server.
        "LEASE_SECONDS": "6",
        # Short, so that a test can fill it.
        "QUEUE_LIMIT": "32",
        **(env or {}),
    }
    edge_folder = folder / "edge"
    edge_folder.mkdir()
    async with contextlib.AsyncExitStack() as running:
        brain = await running.enter_async_context(brain_server(folder / "brain", env=shared))
        cloning_env = {**shared, "BRAIN_ADDRESS": brain.address}
        cloning = await running.enter_async_context(cloning_server(folder / "cloning", env=cloning_env))
        edge = await running.enter_async_context(
            envoy(edge_folder, brain_address=brain.address, cloning_address=cloning.address)
        )
        whole_stack = Stack(
            brain_server=brain,
            cloning_server=cloning,
            edge=edge,
            brain_env=shared,
            cloning_env=cloning_env,
            s3=s3,
            bucket=bucket,
            redis=redis,
            folder=folder,
        )
        await whole_stack.wait_healthy()
        yield whole_stack
