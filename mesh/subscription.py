"""A subscription to a Redis channel that notices when its connection has died, however quietly."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio.client import PubSub


async def heard(pubsub: PubSub, channel: str, *, silence_seconds: float) -> AsyncIterator[Any]:
    """Yields None once the subscription stands, then what is sent to the channel, for as long as the connection lasts.

    What is sent while nobody listens is lost: after None, look at what the notices are about.

    Args:
        pubsub: Of a client without a socket timeout.
        channel: To listen to.
        silence_seconds: How long silence lasts before the other end has to answer, and how long that may take.

    Raises:
        TimeoutError: The other end does not answer.
        RedisError, OSError: The connection fails.
    """
    async with asyncio.timeout(silence_seconds):
        await pubsub.subscribe(channel)
    expects_answer = True
    while True:
        message = await pubsub.get_message(timeout=silence_seconds)
        if message is None:
            # A connection whose other end hangs or vanished stays open and silent; only an answer tells.
            if expects_answer:
                raise TimeoutError
            await pubsub.ping()
        elif message["type"] == "subscribe":
            yield None
        elif message["type"] == "message":
            yield message["data"]
        expects_answer = message is None
