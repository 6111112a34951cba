"""No request through any door, however malformed, gets UNKNOWN or INTERNAL, an error without details, or an echo."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Literal

import grpc
import httpx
import pytest
from aivo.brain.v1 import brain_service_pb2
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.cloning.v1 import cloning_service_pb2
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import Parse
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.conftest import Doors, Side
from tests.fuzz.requests import BRAIN_METHODS, CLONING_METHODS, MARK, RestCall, grpc_calls, rest_calls, texts_in

SIDES: tuple[Literal["brain", "cloning"], ...] = ("brain", "cloning")
METHODS = {"brain": BRAIN_METHODS, "cloning": CLONING_METHODS}
# Python's words, and those of its libraries.
INTERNALS = ("Traceback", "Unexpected <", "protobuf", "Error(", ".py")
CALL_SECONDS = 60
# The client's own words, with INTERNAL: it was still sending when the server had answered.
_STILL_SENDING = "Internal error from Core"


def examples(count: int) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """So many requests, the same in every run."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


def require_ours(status: status_pb2.Status) -> None:
    """Fails unless this is an error of ours, for a caller who is at fault or comes too early."""
    assert status.code not in {0, 2, 13}, status
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details), status
    assert (info.domain, bool(info.reason)) == ("aivo", True)
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(bad_request)
    for text in (status.message, *info.metadata.values(), *texts_in(bad_request)):
        assert MARK not in text
        assert not [word for word in INTERNALS if word in text], text


async def call_grpc(channel: grpc.aio.Channel, method: MethodDescriptor, messages: list[bytes]) -> None:
    """Calls as no stub would: any method as a stream, with bytes as they are."""
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    # gRPC's types ask for a serializer, which bytes need not.
    raw_method: Any = channel.stream_stream(path)
    call = raw_method(iter(messages), timeout=CALL_SECONDS)
    try:
        # One message is enough of a stream that may not end.
        await call.read()
        call.cancel()
    except grpc.aio.AioRpcError as error:
        if error.details() == _STILL_SENDING:
            return
        # Without details there is none, and code 0 fails.
        require_ours(rpc_status.from_call(error) or status_pb2.Status(message=f"{path}: {error.code()}"))


async def call_rest(client: httpx.AsyncClient, call: RestCall) -> None:
    headers = {"content-type": "application/json"} if call.body else {}
    request = client.build_request(call.verb, call.path, content=call.body, headers=headers)
    answer = await client.send(request, stream=True)
    try:
        if answer.is_success:
            return
        body = (await answer.aread()).decode()
    finally:
        await answer.aclose()
    assert answer.status_code < 500 or answer.status_code in {501, 503}, (call, body)
    status = status_pb2.Status()
    Parse(body, status)
    require_ours(status)


async def require_alive(doors: Doors) -> None:
    """Fails unless both servers answer directly and through the gateway."""
    for channel in (doors.brain.direct, doors.brain.gateway):
        await BrainServiceStub(channel).GetHealth(brain_service_pb2.GetHealthRequest(), timeout=CALL_SECONDS)
    for channel in (doors.cloning.direct, doors.cloning.gateway):
        await CloningServiceStub(channel).GetHealth(cloning_service_pb2.GetHealthRequest(), timeout=CALL_SECONDS)


GRPC_CALLS = st.sampled_from(SIDES).flatmap(lambda name: st.tuples(st.just(name), grpc_calls(METHODS[name])))
REST_CALLS = st.sampled_from(SIDES).flatmap(lambda name: st.tuples(st.just(name), rest_calls(METHODS[name])))


def side_of(doors: Doors, name: str) -> Side:
    return doors.brain if name == "brain" else doors.cloning


async def _direct(doors: Doors, call: tuple[str, tuple[MethodDescriptor, list[bytes]]]) -> None:
    await call_grpc(side_of(doors, call[0]).direct, *call[1])


async def _gateway(doors: Doors, call: tuple[str, tuple[MethodDescriptor, list[bytes]]]) -> None:
    await call_grpc(side_of(doors, call[0]).gateway, *call[1])


async def _rest(doors: Doors, call: tuple[str, RestCall]) -> None:
    await call_rest(side_of(doors, call[0]).rest, call[1])


@examples(60)
@given(call=GRPC_CALLS)
async def test_direct_grpc(doors: Doors, call: tuple[str, tuple[MethodDescriptor, list[bytes]]]) -> None:
    await _direct(doors, call)


@examples(60)
@given(call=GRPC_CALLS)
async def test_grpc_through_the_gateway(doors: Doors, call: tuple[str, tuple[MethodDescriptor, list[bytes]]]) -> None:
    await _gateway(doors, call)


@examples(60)
@given(call=REST_CALLS)
async def test_rest(doors: Doors, call: tuple[str, RestCall]) -> None:
    await _rest(doors, call)


@pytest.mark.slow
@examples(10_000)
@given(call=GRPC_CALLS)
async def test_direct_grpc_at_length(doors: Doors, call: tuple[str, tuple[MethodDescriptor, list[bytes]]]) -> None:
    await _direct(doors, call)


@pytest.mark.slow
@examples(10_000)
@given(call=GRPC_CALLS)
async def test_grpc_through_the_gateway_at_length(
    doors: Doors, call: tuple[str, tuple[MethodDescriptor, list[bytes]]]
) -> None:
    await _gateway(doors, call)


@pytest.mark.slow
@examples(10_000)
@given(call=REST_CALLS)
async def test_rest_at_length(doors: Doors, call: tuple[str, RestCall]) -> None:
    await _rest(doors, call)


async def test_raw_bytes_at_each_port_kill_nothing(doors: Doors) -> None:
    source = random.Random(7)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings_frame = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    payloads = [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 100_000, preface, preface + b"\xff" * 9]
    payloads += [source.randbytes(source.choice((9, 100, 5000))) for _ in range(10)]
    payloads += [preface + settings_frame + source.randbytes(200) for _ in range(10)]

    async def send(port: int, payload: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(payload)
        # The server may hang up before all is sent.
        writer.close()

    for port in (*doors.brain.ports, *doors.cloning.ports):
        for payload in payloads:
            await send(port, payload)
    await require_alive(doors)
