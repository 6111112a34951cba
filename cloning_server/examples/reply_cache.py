"""Distilled replies that were paid for before: a class that sat the same assessment pays once.

A cache that is down costs time and nothing else. Only replies made of the item itself are kept, never a student's
words.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from mesh.log import get_logger

# A school year, in seconds: classes sit the same assessments term after term.
TTL_SECONDS = 300 * 24 * 3600
# The cache is beside the trainer; when it takes longer, distilling anew is the safer bet.
TIMEOUT_SECONDS = 2.0

_PREFIX = "aivo:reply:"
_log = get_logger(__name__)


class ReplyCache(Protocol):
    """Replies by key. Neither method fails: what can't be read was never there."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """The replies that are there; an empty one says that no reply could be distilled."""
        ...

    def put_many(self, replies: Mapping[str, str]) -> None:
        """Keeps the replies by their keys."""
        ...


class ValkeyReplyCache:
    """Replies in Valkey or Redis, each for `ttl_seconds` after it was written.

    Args:
        url: Of the server; it is not asked before the first use.
        ttl_seconds: After which a reply is distilled anew.
    """

    def __init__(self, url: str, *, ttl_seconds: int = TTL_SECONDS) -> None:
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
        self._ttl_seconds = ttl_seconds

    def get_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """The replies that are there; none if the server does not answer."""
        if not keys:
            return {}
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.get(_PREFIX + key)
                found = pipe.execute()
        except RedisError as error:
            _log.warning("reply_cache_unavailable", error=type(error).__name__)
            return {}
        return {key: reply for key, reply in zip(keys, found, strict=True) if reply is not None}

    def put_many(self, replies: Mapping[str, str]) -> None:
        """Keeps the replies, or drops them if the server does not answer."""
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for key, reply in replies.items():
                    pipe.set(_PREFIX + key, reply, ex=self._ttl_seconds)
                pipe.execute()
        except RedisError as error:
            _log.warning("reply_cache_unavailable", error=type(error).__name__)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()
