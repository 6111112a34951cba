"""A real Ray cluster on loopback: a head without CPUs, and nodes that join and crash."""

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from testing.parts.part import Part, free_ports

ACTOR = "ray::TrainingActor"
# Ray's minimum; no large object is stored there.
_OBJECT_STORE_BYTES = 80_000_000
_READY_LINE = "Ray runtime started"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """A running cluster.

    Attributes:
        address: Address of the head, in the form of `RAY_ADDRESS`.
        env: Variables that every process needs to join.
        folder: Holds one folder per node.
    """

    address: str
    env: Mapping[str, str]
    folder: Path

    @contextlib.asynccontextmanager
    async def node(self, name: str, *, cpus: int = 1) -> AsyncIterator[Part]:
        """Runs another node of the cluster with this many CPUs."""
        async with _running(
            f"--address={self.address}", f"--num-cpus={cpus}", folder=self.folder / name, env=self.env
        ) as part:
            yield part


@contextlib.asynccontextmanager
async def ray_cluster(folder: Path) -> AsyncIterator[RayCluster]:
    """Runs the head of a cluster; it has no CPUs, so nothing trains on it."""
    port, client_port = free_ports(2)
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    ports = (f"--port={port}", f"--ray-client-server-port={client_port}")
    head = ("--head", *ports, "--num-cpus=0", "--include-dashboard=false")
    async with _running(*head, folder=folder / "head", env=env):
        yield RayCluster(address=f"127.0.0.1:{port}", env=env, folder=folder)


@contextlib.asynccontextmanager
async def _running(*options: str, folder: Path, env: Mapping[str, str]) -> AsyncIterator[Part]:
    part = _node(*options, folder=folder, env=env)
    await part.start()
    try:
        yield part
    finally:
        await part.lose()


def _node(*options: str, folder: Path, env: Mapping[str, str]) -> Part:
    folder.mkdir()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *options]
    # Workers take any free port: our parts use ports of Ray's own range.
    command += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]

    async def has_started() -> bool:
        return _READY_LINE in await asyncio.to_thread((folder / "log").read_text)

    return Part(command, folder=folder, probe=has_started, env=env)
