"""The gateway as a process on free loopback ports: the real Envoy with the real configuration."""

import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from testing.parts.part import Part, free_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A running gateway and its addresses.

    Attributes:
        brain_url: REST of the brain, without a final slash.
        cloning_url: REST of the cloning server, without a final slash.
        brain_address: gRPC of the brain through the gateway.
        cloning_address: gRPC of the cloning server through the gateway.
        metrics_url: Envoy's figures, read-only.
        folder: Holds the configuration, the socket of Envoy's own interface, and the `log`, which is complete once the
            part has stopped.
    """

    brain_url: str
    cloning_url: str
    brain_address: str
    cloning_address: str
    metrics_url: str
    folder: Path
    part: Part

    @property
    def admin(self) -> httpx.AsyncClient:
        """A client of Envoy's own interface."""
        socket = str(self.folder / "admin.sock")
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://localhost")


@contextlib.asynccontextmanager
async def envoy(
    folder: Path,
    *,
    brain_address: str,
    cloning_address: str,
    cors_allow_origins: str = "",
    allowed_hosts: str = "",
    connection_idle_seconds: str = "",
) -> AsyncIterator[Edge]:
    """Runs the gateway in front of two servers, which may start later. Settings are as in the environment."""
    brain_port, cloning_port, metrics_port = free_ports(3)
    env = {
        "BRAIN_REST_PORT": str(brain_port),
        "CLONING_REST_PORT": str(cloning_port),
        "ENVOY_METRICS_PORT": str(metrics_port),
        "BRAIN_ADDRESS": brain_address,
        "CLONING_ADDRESS": cloning_address,
        "CORS_ALLOW_ORIGINS": cors_allow_origins,
        "ALLOWED_HOSTS": allowed_hosts,
        "CONNECTION_IDLE_SECONDS": connection_idle_seconds,
    }
    metrics_url = f"http://127.0.0.1:{metrics_port}"

    async def live() -> bool:
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{metrics_url}/ready")).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

    part = Part([sys.executable, "-m", "gateway", "."], folder=folder, probe=live, env=env)
    await part.start()
    try:
        yield Edge(
            brain_url=f"http://127.0.0.1:{brain_port}",
            cloning_url=f"http://127.0.0.1:{cloning_port}",
            brain_address=f"127.0.0.1:{brain_port}",
            cloning_address=f"127.0.0.1:{cloning_port}",
            metrics_url=metrics_url,
            folder=folder,
            part=part,
        )
    finally:
        await part.stop()
