"""What both clients share: a failed call as the error that the server raised."""

import contextlib
from collections.abc import Iterator

import grpc

from mesh.rpc.errors import error_of


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Raises how a call failed as the `AivoError` it stands for; see `mesh.rpc.errors.error_of`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from None
