"""Headers: what nobody reads is dropped, what is read is bounded, and what servers say in headers."""

import grpc
import httpx
import pytest
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from testing.parts.envoy import Edge
from testing.scripted.script import Script, failure, info
from tests.gateway.conftest import ORIGIN

TOO_LARGE = {"code": 3, "message": "the headers are too large", "details": [info("REQUEST_TOO_LARGE")]}


@pytest.mark.parametrize("bytes_", [10_000, 15_500, 50_000])
async def test_cookies_of_a_portal_are_dropped_however_large(
    brain_rest: httpx.AsyncClient, brain: Script, bytes_: int
) -> None:
    headers = {"cookie": "c" * bytes_, "x-portal": "a", "x-student-id": "student123"}
    answers = [await brain_rest.get("/health", headers=headers) for _ in range(20)]

    assert {answer.status_code for answer in answers} == {200}
    metadata = brain.calls[-1].metadata
    assert metadata["x-student-id"] == "student123"
    assert not {"cookie", "x-portal", "accept"} & metadata.keys()
    assert sum(len(name) + len(value) for name, value in metadata.items()) < 1_000


@pytest.mark.parametrize(
    "headers",
    [
        {"x-student-id": "s" * 5_000},
        {"x-student-id": "s" * 20_000},
        {"grpc-accept-encoding": "g" * 5_000},
        {"cookie": "c" * 70_000},
        {f"x-{n}": "v" for n in range(120)},
    ],
    ids=["read", "read and large", "another", "dropped and huge", "many"],
)
async def test_headers_above_the_bound_are_always_refused(
    brain_rest: httpx.AsyncClient, brain: Script, headers: dict[str, str]
) -> None:
    answers = [await brain_rest.get("/health", headers=headers) for _ in range(10)]

    assert {answer.status_code for answer in answers} == {431}
    assert all(answer.json() == TOO_LARGE for answer in answers)
    assert brain.calls == []


async def test_a_page_can_read_that_its_headers_are_too_large(brain_rest: httpx.AsyncClient) -> None:
    headers = {"origin": ORIGIN, "x-student-id": "s" * 5_000}
    answer = await brain_rest.get("/health", headers=headers)

    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (431, ORIGIN)


async def test_grpc_callers_have_the_same_bounds(brain_channel: grpc.aio.Channel, brain: Script) -> None:
    stub = BrainServiceStub(brain_channel)
    for _ in range(10):
        await stub.Generate(brain_pb.GenerateRequest(prompt="Why?"), metadata=[("cookie", "c" * 15_500)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(brain_pb.GenerateRequest(prompt="Why?"), metadata=[("x-student-id", "s" * 5_000)])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "the headers are too large"
    assert len(brain.calls) == 10


@pytest.mark.parametrize("claimed_address", ["", "192.0.2.1", "192.0.2.1, 127.0.0.1"])
async def test_servers_learn_who_called_the_gateway_and_not_what_the_caller_says_of_it(
    brain_rest: httpx.AsyncClient, brain: Script, claimed_address: str
) -> None:
    headers = {"x-forwarded-for": claimed_address} if claimed_address else {}
    await brain_rest.get("/health", headers=headers)

    assert brain.calls[-1].metadata["x-forwarded-for"] == "127.0.0.1"


async def test_a_query_reaches_no_server_as_a_header(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    answers = [await cloning_rest.get(f"/v1/clones?page_token={'t' * 12_000}") for _ in range(10)]

    assert {answer.status_code for answer in answers} == {200}
    assert cloning.calls[-1].metadata["x-envoy-original-path"] == "/v1/clones"


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (2, "2"), (2.3, "3")])
async def test_when_to_try_again_is_in_the_header_too(
    brain_rest: httpx.AsyncClient, brain: Script, seconds: float, header: str
) -> None:
    full = failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", limit="64")
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9)))
    detail = AnyMessage()
    detail.Pack(retry)
    full.details.append(detail)
    brain.failures.extend([full, full])

    answers = [
        await brain_rest.post("/v1/generate", json={"prompt": "Why?"}, headers={"origin": ORIGIN}),
        await brain_rest.post("/v1/generate/stream", json={"prompt": "Why?"}),
    ]

    assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(429, header)] * 2
    # A page reads only the headers that are named.
    assert "retry-after" in answers[0].headers["access-control-expose-headers"]
    assert answers[0].json()["details"][1]["retry_delay"].endswith("s")


async def test_without_a_time_there_is_no_header(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    words = 'google.rpc.RetryInfo","retry_delay":"9s"'
    brain.failures.append(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", words=words))
    answer = await brain_rest.post("/v1/generate", json={"prompt": "Why?"})

    assert answer.status_code == 429
    assert "retry-after" not in answer.headers


async def test_both_ports_have_the_same_bound(edge: Edge) -> None:
    async with httpx.AsyncClient() as client:
        for url in (edge.brain_url, edge.cloning_url):
            answer = await client.get(f"{url}/health", headers={"x-student-id": "s" * 5_000})
            assert (answer.status_code, answer.json()) == (431, TOO_LARGE)
