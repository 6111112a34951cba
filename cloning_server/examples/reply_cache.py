"""A cache of distilled replies, so that a class that takes the same assessment distils once.

If the cache is down, distillation takes longer and nothing else changes. It stores only replies that are derived from
the item itself, never a student's words.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from mesh.log import get_logger

# The cache is close to the trainer; if it takes longer, distilling again is the better choice.
TIMEOUT_SECONDS = 2.0

_log = get_logger(__name__)


class ReplyCache(Protocol):
    """Distilled sentences by key. Neither method raises: an entry that can't be read counts as missing."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Returns the entries that exist; an empty one means that no reply could be distilled."""
        ...

    def put_many(self, replies: Mapping[str, str]) -> None:
        """Stores entries."""
        ...


class ValkeyReplyCache:
    """A reply cache in Valkey or Redis.

    Args:
        url: The server's; the first use connects.
        tenant: Whose assessments the replies are for; no other tenant reads them.
        ttl_seconds: Lifetime of an entry after it was written.
    """

    def __init__(self, url: str, *, tenant: str, ttl_seconds: int) -> None:
        self._prefix = f"{{aivo:{tenant}}}:reply:"
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
        self._ttl_seconds = ttl_seconds

    def get_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Returns the entries that exist; none if the server does not answer."""
        if not keys:
            return {}
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.get(self._prefix + key)
                values = pipe.execute()
        except RedisError as error:
            _log.warning("reply_cache_unavailable", error=type(error).__name__)
            return {}
        return {key: reply for key, reply in zip(keys, values, strict=True) if reply is not None}

    def put_many(self, replies: Mapping[str, str]) -> None:
        """Stores entries, or drops them if the server does not answer."""
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, reply in replies.items():
                    pipe.set(self._prefix + key, reply, ex=self._ttl_seconds)
                pipe.execute()
        except RedisError as error:
            _log.warning("reply_cache_unavailable", error=type(error).__name__)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()
