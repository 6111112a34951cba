"""AIVO's own servers as processes on free loopback ports, each in a folder of its own."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from testing.parts.part import Part, free_ports


@contextlib.asynccontextmanager
async def cloning_server(folder: Path, *, env: Mapping[str, str]) -> AsyncIterator[tuple[Part, str]]:
    """Runs a cloning server; yields it and its gRPC address."""
    port, metrics_port = free_ports(2)
    ports = {"CLONING_PORT": str(port), "CLONING_METRICS_PORT": str(metrics_port)}
    part = server("cloning_server", folder, port=port, env={**env, **ports})
    await part.start()
    try:
        yield part, f"127.0.0.1:{port}"
    finally:
        await part.stop()


def server(module: str, folder: Path, *, port: int, env: Mapping[str, str]) -> Part:
    """Returns a server, not started; it is ready once it listens, and healthy some time later."""
    folder.mkdir()

    async def listens() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True

    return Part([sys.executable, "-m", module], folder=folder, probe=listens, env=env)
