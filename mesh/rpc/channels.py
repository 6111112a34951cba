"""Channels to servers: keepalive, retries and a deadline for calls that set none.

A caller sets another deadline per call, with `timeout=` in seconds. Streams have no default deadline, as replies and
clones may take any time.
"""

import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

# A unary call that takes longer counts as lost. Callers that expect longer calls set a timeout of their own.
DEFAULT_TIMEOUT_SECONDS = 60.0

# Only UNAVAILABLE is safe to retry: the server did not take the call, or asks to try again later. A stream is retried
# only before its first message. Five attempts (gRPC's most) span the restart of a server that is
# up at once, about 3 s; callers that wait longer do so themselves, visibly.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Bounds the time until a vanished peer is noticed, also while a stream waits. Servers of AIVO allow pings this
    # often; see `mesh.rpc.server`.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own default waits up to two minutes before it looks again for a server that was down.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class _DefaultTimeout(grpc.aio.UnaryUnaryClientInterceptor):
    """Gives a deadline to unary calls that have none."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_unary_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, RequestT], Awaitable[grpc.aio.UnaryUnaryCall[RequestT, ResponseT]]
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: RequestT,
    ) -> grpc.aio.UnaryUnaryCall[RequestT, ResponseT]:
        """Passes the call on, with the default deadline if it has none."""
        details = client_call_details
        if details.timeout is None:
            details = grpc.aio.ClientCallDetails(
                details.method, self._seconds, details.metadata, details.credentials, details.wait_for_ready
            )
        return await continuation(details, request)


def open_channel(address: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> grpc.aio.Channel:
    """Opens a channel to `host:port`; it connects with its first call, and again whenever it must.

    Args:
        address: Where the server is.
        timeout_seconds: Deadline of unary calls that set none.

    Returns:
        The channel; an async context manager, or to be closed.
    """
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=[_DefaultTimeout(timeout_seconds)])
