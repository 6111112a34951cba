"""What both clients share: a channel, and failed calls as the errors that the server raised."""

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc

from mesh.rpc.channels import open_channel
from mesh.rpc.errors import error_of


class Client:
    """A channel to one server, directly or through the gateway; closed on exit.

    Every method of a client raises the `AivoError` that the server raised, `ServerUnreachable` if none answers, and
    `DeadlineExceeded` if it takes too long.

    Args:
        address: `host:port` of the server or of the gateway.
    """

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Raises the `AivoError` that a failed call stands for; see `mesh.rpc.errors.error_of`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from None
