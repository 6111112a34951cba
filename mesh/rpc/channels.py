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

# A unary call that takes longer than this, unless its caller expects it to, will not end.
DEFAULT_TIMEOUT_SECONDS = 60.0

# UNAVAILABLE alone is safe to repeat: the server did not take the call, or says itself that later may be better. A
# stream is repeated only before its first message. Five attempts (gRPC's most) span the restart of a server that is
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
    # A peer that vanished without a word is noticed within these two, also under a stream that waits. Servers of AIVO
    # allow pings this often; see `mesh.rpc.server`.
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
        """Calls on."""
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
