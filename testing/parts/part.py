"""A real part of AIVO as a process on free loopback ports.

A part is its own process group and is ready once it answers. It can stop and start again on the same port with its
data, as in an outage.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

READY_SECONDS = 60
STOP_SECONDS = 10
# Between two probes: short beside any start, long beside the cost of a probe.
PROBE_SECONDS = 0.02

# Below the range that Linux and macOS use for outgoing connections, so that no connection takes the port of a part
# that is down.
PORTS = range(10_000, 30_000)
MAX_WORKERS = 16

Probe = Callable[[], Awaitable[bool]]


class Part:
    """One process of the stack.

    Args:
        command: Program and arguments; the folder is its working directory.
        folder: Holds the part's data and its `log`.
        probe: Returns whether the part answers; `OSError` counts as no.
        env: Variables in addition to those of this process.
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
        """Starts the process and returns once it answers.

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
        """The id of the running process."""
        assert self._process is not None, "not started"
        return self._process.pid

    async def stop(self) -> int:
        """Sends SIGTERM, and kills the process group if it does not end in time; returns the exit status."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Kills the process, as a crash would."""
        await self._end(signal.SIGKILL)

    async def lose(self) -> None:
        """Kills the process and all its descendants, as the loss of its machine would."""
        descendants = self._descendants()
        await self.kill()
        _kill(descendants)

    def kill_child(self, name: str) -> bool:
        """Kills the descendants whose name begins so; returns whether there were any."""
        return _kill(process for process in self._descendants() if _name(process).startswith(name))

    def runs(self, name: str) -> bool:
        """Whether a descendant has a name that begins so."""
        return any(_name(process).startswith(name) for process in self._descendants())

    def pause(self) -> None:
        """Freezes the process, as on a machine that swaps or hangs; its connections stay open."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resumes a paused process."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def full_disk(self, child: str) -> Iterator[None]:
        """Lets the process, and its descendants whose name begins so, write to no file, as on a full disk. Linux only.

        Each must ignore the signal SIGXFSZ, as Python does; its writes then fail with an `OSError`. Sockets and pipes
        are no files. A process that starts meanwhile writes as ever.
        """
        assert self._process is not None, "not started"
        children = [process for process in self._descendants() if _name(process).startswith(child)]
        processes = [psutil.Process(self._process.pid), *children]
        _limit_files(processes, 0)
        try:
            yield
        finally:
            _limit_files(processes, psutil.RLIM_INFINITY)

    def log_tail(self) -> str:
        """The last lines of the log."""
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

    async def _end(self, first_signal: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, first_signal)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            pass
        finally:
            # Also kills what the process left in its group, and also runs when the wait was cancelled.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return process.returncode or 0


def free_ports(count: int) -> list[int]:
    """Returns distinct loopback ports of `PORTS` on which nothing listens.

    Each of pytest-xdist's workers has ports of its own, so that no two workers choose the same port at once.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    candidates = PORTS[worker % MAX_WORKERS :: MAX_WORKERS]
    ports: list[int] = []
    for port in random.sample(candidates, len(candidates)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"fewer than {count} free ports")


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _limit_files(processes: Iterable[psutil.Process], limit_bytes: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, (limit_bytes, psutil.RLIM_INFINITY))


def _kill(processes: Iterable[psutil.Process]) -> bool:
    killed = False
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            killed = True
    return killed
