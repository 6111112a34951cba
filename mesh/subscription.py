"""A subscription to a Redis channel that notices a dead connection, even one that stays open and silent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from redis.asyncio.client import PubSub


def _ignore() -> None:
    """The default: nobody asks whether the connection is alive."""


async def subscribe(
    pubsub: PubSub, channel: str, *, silence_seconds: float, on_alive: Callable[[], None] = _ignore
) -> AsyncIterator[Any]:
    """Yields None once the subscription is active, then each message of the channel, while the connection lasts.

    Messages sent while nobody is subscribed are lost: after None, read again whatever the messages are about.

    Args:
        pubsub: Of a client without a socket timeout.
        channel: Name of the channel.
        silence_seconds: After this much silence the server is pinged, and it has as long again to answer.
        on_alive: Called after each message and each answer of the server, once whoever iterates has taken it.

    Raises:
        TimeoutError: The server does not answer.
        RedisError, OSError: The connection fails.
    """
    async with asyncio.timeout(silence_seconds):
        await pubsub.subscribe(channel)
    expects_answer = True
    while True:
        message = await pubsub.get_message(timeout=silence_seconds)
        if message is None:
            # A connection to a server that hangs or vanished stays open and silent; only a ping can tell.
            if expects_answer:
                raise TimeoutError
            await pubsub.ping()
        elif message["type"] == "subscribe":
            yield None
        elif message["type"] == "message":
            yield message["data"]
        if message is not None:
            on_alive()
        expects_answer = message is None
