"""A TCP proxy that stands before a part and misbehaves as a test says: it delays, hangs, or cuts connections.

A part behind it neither ends nor knows of the fault, unlike a part that is killed or paused.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

_CHUNK_BYTES = 65_536
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Way(Enum):
    """Which way bytes go through the proxy."""

    REQUESTS = "to the part"
    ANSWERS = "from the part"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """The answer to lose: that of the next request with these words."""

    words: bytes
    is_lost: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """Passes connections on to a port on loopback while it is entered; without a fault at first.

    Args:
        target_port: Port of the part.

    Attributes:
        port: Its own port, on loopback.
        latency_seconds: Delay of whatever passes, each way.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.latency_seconds = 0.0
        self._target_port = target_port
        self._passes = {way: asyncio.Event() for way in Way}
        self._cut: Way | None = None
        self._loss: _Loss | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.heal()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def hang(self) -> None:
        """Accepts connections from now on, and passes nothing. What it holds back passes once it heals."""
        for way in Way:
            self.stop(way)

    def stop(self, way: Way) -> None:
        """Passes nothing this way from now on, as a network that is broken one way."""
        self._passes[way].clear()

    def cut_next(self, way: Way) -> None:
        """Closes a connection in place of passing the next bytes this way.

        `REQUESTS` cuts before the part has done anything, `ANSWERS` after it has: its answer is lost.
        """
        self._cut = way

    async def lose_answer(self, words: bytes) -> None:
        """Closes the connection of the next request that holds these words, in place of its answer; returns then.

        The part has done what the request asks for. One caller at a time, whose requests wait for each other's answers
        on each connection.
        """
        self._loss = loss = _Loss(words=words)
        try:
            await loss.is_lost.wait()
        finally:
            self._loss = None

    def heal(self) -> None:
        """Ends every fault but the latency."""
        self._cut = None
        for passes in self._passes.values():
            passes.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            part_reader, part_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            with contextlib.closing(part_writer):
                await self._pump_both_ways((reader, writer), (part_reader, part_writer))

    async def _pump_both_ways(self, caller: _Connection, part: _Connection) -> None:
        losses: list[_Loss] = []
        pumps = [
            asyncio.create_task(self._pump(caller[0], part[1], Way.REQUESTS, losses)),
            asyncio.create_task(self._pump(part[0], caller[1], Way.ANSWERS, losses)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, losses: "list[_Loss]"
    ) -> None:
        """Passes bytes one way until either side closes the connection, or it is cut.

        Args:
            reader: Where the bytes come from.
            writer: Where they go to.
            way: Which way that is.
            losses: Holds the loss of the answer that comes next, if there is one.
        """
        while data := await reader.read(_CHUNK_BYTES):
            await asyncio.sleep(self.latency_seconds)
            await self._passes[way].wait()
            if self._cut is way:
                self._cut = None
                return
            if way is Way.ANSWERS and losses:
                losses[0].is_lost.set()
                return
            if way is Way.REQUESTS and self._loss and self._loss.words in data:
                losses.append(self._loss)
                self._loss = None
            writer.write(data)
            await writer.drain()
