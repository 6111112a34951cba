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
        admin_url: Envoy's own interface.
        folder: Holds the configuration and the `log`; the log is complete once the part has stopped.
    """

    brain_url: str
    cloning_url: str
    brain_address: str
    cloning_address: str
    admin_url: str
    folder: Path
    part: Part


@contextlib.asynccontextmanager
async def envoy(
    folder: Path, *, brain_address: str, cloning_address: str, cors_allow_origins: str = ""
) -> AsyncIterator[Edge]:
    """Runs the gateway in front of two servers, which may start later."""
    brain_port, cloning_port, admin_port = free_ports(3)
    env = {
        "BRAIN_REST_PORT": str(brain_port),
        "CLONING_REST_PORT": str(cloning_port),
        "ENVOY_ADMIN_PORT": str(admin_port),
        "BRAIN_ADDRESS": brain_address,
        "CLONING_ADDRESS": cloning_address,
        "CORS_ALLOW_ORIGINS": cors_allow_origins,
    }
    admin_url = f"http://127.0.0.1:{admin_port}"

    async def live() -> bool:
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{admin_url}/ready")).status_code == httpx.codes.OK
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
            admin_url=admin_url,
            folder=folder,
            part=part,
        )
    finally:
        await part.stop()
