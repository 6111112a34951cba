"""A cloning server in a process of its own, whose clones wait for ever, and a crowd of watchers in another.

The server, the watchers and the measuring calls have an event loop each, and share only the cores.
"""

import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import TYPE_CHECKING

import grpc
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub

from cloning_server.app import open_server
from cloning_server.settings import CloningSettings
from mesh import log
from testing.scripted.trainer import ScriptedTrainer

if TYPE_CHECKING:
    # The generated code has this for type checkers alone.
    from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceAsyncStub

# A new process imports everything anew.
START_SECONDS = 60.0
# Thousands of first messages of thousands of watches, on two cores.
WATCH_SECONDS = 300.0
# So many watches share a connection, as behind a gateway.
WATCHES_PER_CHANNEL = 250
# gRPC would let all channels share one connection.
_CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)

_processes = multiprocessing.get_context("spawn")


@dataclass(slots=True, kw_only=True)
class WatchReport:
    """How the watches went.

    Attributes:
        messages: Messages that all watches received.
        broken: Watches that ended, by the code with which they did, and those that were silent for too long.
        longest_first_seconds: Longest wait for a watch's first message.
        longest_silence_seconds: Longest wait of a watch for its next message.
    """

    messages: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    longest_first_seconds: float = 0.0
    longest_silence_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchers:
    """A process of watchers.

    Attributes:
        stop: Is set when they should end and report.
        reports: Where the report comes from.
    """

    stop: Event
    reports: Connection

    async def report(self) -> WatchReport:
        """Ends the watches; returns how they went."""
        self.stop.set()
        report = await _received(self.reports, seconds=START_SECONDS)
        assert isinstance(report, WatchReport)
        return report


@asynccontextmanager
async def cloning_process(settings: CloningSettings) -> AsyncIterator[str]:
    """Runs a cloning server that accepts clones and trains none; yields its address."""
    ports, port_sender = _processes.Pipe(duplex=False)
    async with _running(_processes.Process(target=_serve, args=(settings, port_sender))):
        port_sender.close()
        yield f"127.0.0.1:{await _received(ports, seconds=START_SECONDS)}"


@asynccontextmanager
async def watching(
    address: str, clone_ids: Sequence[str], *, count: int, silence_seconds: float
) -> AsyncIterator[Watchers]:
    """Watches these clones by so many watches, one clone each; yields once each has its first message or is broken.

    Args:
        address: Of the cloning server.
        clone_ids: The clones; they share the watches evenly.
        count: How many watches.
        silence_seconds: A watch without a message for so long counts as broken.
    """
    stop = _processes.Event()
    reports, report_sender = _processes.Pipe(duplex=False)
    watched_ids = [clone_ids[number % len(clone_ids)] for number in range(count)]
    arguments = (address, watched_ids, silence_seconds, stop, report_sender)
    async with _running(_processes.Process(target=_watch_all, args=arguments)):
        report_sender.close()
        await _received(reports, seconds=WATCH_SECONDS)
        yield Watchers(stop=stop, reports=reports)


@asynccontextmanager
async def _running(process: BaseProcess) -> AsyncIterator[None]:
    process.start()
    try:
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)


async def _received(messages: Connection, *, seconds: float) -> object:
    """Returns what a process sends next.

    Raises:
        EOFError: It ended.
        TimeoutError: It sent nothing in time.
    """
    if not await asyncio.to_thread(messages.poll, seconds):
        raise TimeoutError(f"no word from the process in {seconds:.0f} s")
    message: object = messages.recv()
    return message


def _serve(settings: CloningSettings, ports: Connection) -> None:
    log.configure(level="warning", form="console", service="cloning", packages=("cloning_server", "mesh"))
    asyncio.run(_serve_until_terminated(settings, ports))


async def _serve_until_terminated(settings: CloningSettings, ports: Connection) -> None:
    trainer = ScriptedTrainer()
    trainer.seats = 0
    async with open_server(settings, trainer=trainer) as server:
        await server.start()
        ports.send(server.port)
        await server.serve_until_signal()


def _watch_all(
    address: str, clone_ids: Sequence[str], silence_seconds: float, stop: Event, reports: Connection
) -> None:
    asyncio.run(_watch_until_stopped(address, clone_ids, silence_seconds, stop, reports))


async def _watch_until_stopped(
    address: str, clone_ids: Sequence[str], silence_seconds: float, stop: Event, reports: Connection
) -> None:
    report = WatchReport()
    async with AsyncExitStack() as stack:
        watches = []
        for start in range(0, len(clone_ids), WATCHES_PER_CHANNEL):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS))
            stub: CloningServiceAsyncStub = CloningServiceStub(channel)
            watches += [_Watch(stub, clone_id, report) for clone_id in clone_ids[start : start + WATCHES_PER_CHANNEL]]
        tasks = [asyncio.create_task(watch.run()) for watch in watches]
        for watch in watches:
            await watch.has_begun.wait()
        reports.send(None)
        await asyncio.to_thread(stop.wait)
        for watch in watches:
            report.longest_silence_seconds = max(report.longest_silence_seconds, watch.longest_silence_seconds)
            report.broken["silent"] += not watch.is_broken and watch.longest_silence_seconds > silence_seconds
        report.broken = +report.broken
        # First: a watch that is cancelled here may end with an error too.
        reports.send(report)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Watch:
    """One watch of one clone, which never ends by itself.

    Attributes:
        has_begun: Is set with the first message, or when the watch breaks.
        is_broken: Whether it has ended.
    """

    def __init__(self, stub: "CloningServiceAsyncStub", clone_id: str, report: WatchReport) -> None:
        self.has_begun = asyncio.Event()
        self.is_broken = False
        self._stub = stub
        self._clone_id = clone_id
        self._report = report
        self._last_at = time.monotonic()
        self._longest_silence_seconds = 0.0

    @property
    def longest_silence_seconds(self) -> float:
        """Longest wait for a message after the first, one that goes on included."""
        waiting_seconds = 0.0 if self.is_broken else time.monotonic() - self._last_at
        return max(self._longest_silence_seconds, waiting_seconds)

    async def run(self) -> None:
        """Receives messages until it is cancelled, or the watch ends."""
        code = "OK"
        try:
            async for _ in self._stub.WatchClone(pb.WatchCloneRequest(clone_id=self._clone_id)):
                self._note_message()
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        self.is_broken = True
        self._report.broken[code] += 1
        self.has_begun.set()

    def _note_message(self) -> None:
        waited_seconds = time.monotonic() - self._last_at
        self._last_at += waited_seconds
        self._report.messages += 1
        if self.has_begun.is_set():
            self._longest_silence_seconds = max(self._longest_silence_seconds, waited_seconds)
        else:
            self._report.longest_first_seconds = max(self._report.longest_first_seconds, waited_seconds)
            self.has_begun.set()
