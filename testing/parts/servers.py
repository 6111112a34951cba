"""AIVO's own servers as processes on free loopback ports, each in a folder of its own."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from testing.parts.part import Part, free_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server and where it is.

    Attributes:
        part: Its process.
        address: Its gRPC.
        metrics_url: Its figures.
        folder: Its working directory, with its `log`.
    """

    part: Part
    address: str
    metrics_url: str
    folder: Path


@contextlib.asynccontextmanager
async def brain_server(folder: Path, *, env: Mapping[str, str]) -> AsyncIterator[RunningServer]:
    """Runs a brain; it listens, and loads its model some time later."""
    async with _running("brain_server", "BRAIN", folder, env) as running:
        yield running


@contextlib.asynccontextmanager
async def cloning_server(folder: Path, *, env: Mapping[str, str]) -> AsyncIterator[RunningServer]:
    """Runs a cloning server; it listens, and is healthy some time later."""
    async with _running("cloning_server", "CLONING", folder, env) as running:
        yield running


@contextlib.asynccontextmanager
async def _running(module: str, prefix: str, folder: Path, env: Mapping[str, str]) -> AsyncIterator[RunningServer]:
    await asyncio.to_thread(folder.mkdir)
    port, metrics_port = free_ports(2)
    ports = {f"{prefix}_PORT": str(port), f"{prefix}_METRICS_PORT": str(metrics_port)}

    async def listens() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True

    part = Part([sys.executable, "-m", module], folder=folder, probe=listens, env={**env, **ports})
    await part.start()
    try:
        yield RunningServer(
            part=part,
            address=f"127.0.0.1:{port}",
            metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
            folder=folder,
        )
    finally:
        await part.stop()
