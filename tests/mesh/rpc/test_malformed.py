"""Calls that gRPC itself would answer with Python's words, or never: each gets an error of ours, and is logged."""

import typing
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import generate_latest

from mesh.rpc import interceptor
from mesh.rpc.interceptor import MAX_REQUEST_BYTES
from mesh.rpc.server import Server
from testing.waiting import until
from tests.mesh.rpc.conftest import SERVICE, Logs

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
# The first field of most requests, a text, and of a health check the service's name.
NOT_UTF8 = b"\x0a\x06secre\xff"
NO_MESSAGE = b"\xff secret"
MALFORMED = ("INVALID_ARGUMENT", "MALFORMED_REQUEST")
NO_METHOD = ("UNIMPLEMENTED", "METHOD_NOT_FOUND")


def _any_method(channel: grpc.aio.Channel, path: str) -> typing.Any:
    """The method as a stream of bytes; gRPC's types ask for a serializer, which bytes need not."""
    return channel.stream_stream(path)


async def failure_of(channel: grpc.aio.Channel, path: str, messages: Sequence[bytes]) -> grpc.aio.AioRpcError:
    """How a call with these messages fails, sent as they are."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in _any_method(channel, path)(iter(messages), timeout=30):
            pass
    return caught.value


@pytest.mark.parametrize(
    ("path", "messages", "expected"),
    [
        (f"/{SERVICE}/Generate", [NOT_UTF8], MALFORMED),
        (f"/{SERVICE}/Generate", [NO_MESSAGE], MALFORMED),
        (f"/{SERVICE}/Generate", [], MALFORMED),
        (f"/{SERVICE}/GenerateStream", [NOT_UTF8], MALFORMED),
        (f"/{SERVICE}/GenerateStream", [], MALFORMED),
        (f"/{SERVICE}/Generate", [b"x" * (MAX_REQUEST_BYTES + 1)], ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")),
        (f"/{SERVICE}/Secret", [NOT_UTF8], NO_METHOD),
        ("/secret/Secret", [], NO_METHOD),
        ("//", [b""], NO_METHOD),
        (f"/{HEALTH}/Check", [NOT_UTF8], MALFORMED),
        (f"/{HEALTH}/Watch", [], MALFORMED),
        (f"/{HEALTH}/Secret", [b""], NO_METHOD),
        (f"/{REFLECTION}/ServerReflectionInfo", [NO_MESSAGE], MALFORMED),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_each_gets_an_error_of_ours_that_quotes_nothing(
    channel: grpc.aio.Channel,
    server: Server,
    logs: Logs,
    *,
    path: str,
    messages: list[bytes],
    expected: tuple[str, str],
) -> None:
    error = await failure_of(channel, path, messages)

    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    detail: Any = status.details[0]
    assert detail.Unpack(info)
    assert (error.code().name, info.reason, info.domain) == (*expected, "aivo")
    assert "secre" not in str(status)
    assert "protobuf" not in str(status)

    async def is_logged() -> bool:
        return bool(logs.of("call"))

    # The line is written once the answer is on its way.
    await until(is_logged, seconds=10)
    (line,) = logs.of("call")
    assert (line["code"], line["reason"]) == expected
    metrics = generate_latest(server.registry).decode()
    (count,) = (line for line in metrics.splitlines() if line.startswith("aivo_rpc_calls_total"))
    assert f'code="{expected[0]}"' in count
    assert "ecret" not in metrics + logs.text, "callers make up no labels"


async def test_a_call_whose_message_does_not_come_ends(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "REQUEST_SECONDS", 0.05)
    call = _any_method(channel, f"/{SERVICE}/Generate")(timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message came" in str(caught.value.details())
