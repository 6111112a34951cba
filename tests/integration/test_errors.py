"""Every row of the contract's error table, over REST through the gateway and over gRPC to the servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.brain.v1 import brain_service_pb2_grpc as brain_grpc
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from aivo.cloning.v1 import cloning_service_pb2_grpc as cloning_grpc
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from testing.baseline import start_body
from testing.parts.stack import Stack, until_status

JSON = {"content-type": "application/json"}
ASK: dict[str, Any] = {"prompt": "What is rain?", "max_tokens": 4, "temperature": 0}


def context(**fields: str) -> dict[str, Any]:
    return {"context": fields}


GENERATE_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": "x" * 8001}, "prompt"),
    (context(grade="13"), "context.grade"),
    (context(learning_style="telepathic"), "context.learning_style"),
    (context(disability="laziness"), "context.disability"),
    (context(student_id="../x"), "context.student_id"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "NaN"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 1025}, "max_tokens"),
    ({"history": [{"role": "ROLE_STUDENT", "text": ""}, {"role": "ROLE_TUTOR", "text": "Yes."}]}, "history[0].text"),
]
CLONE_FAULTS: list[tuple[str, object, str]] = [
    ("student_id", "../x", "student_id"),
    ("student_id", "", "student_id"),
    ("student_profile", {"grade": "13"}, "student_profile.grade"),
    ("baseline_data", {"responses": []}, "baseline_data.responses"),
    ("baseline_data", {"responses": [{"question": "Why?", "student_answer": "a"}] * 2}, "baseline_data.responses"),
    (
        "baseline_data",
        {"responses": [{"question": f"Why {n}?", "student_answer": "a", "score": n} for n in (0, 1)]},
        "baseline_data.max_score",
    ),
    ("request_id", "a/b", "request_id"),
]


def fields_in(status: dict[str, Any]) -> set[str]:
    return {
        violation["field"]
        for detail in status["details"]
        if detail["@type"].endswith("BadRequest")
        for violation in detail["field_violations"]
    }


def reason_in(status: dict[str, Any]) -> tuple[str, dict[str, str]]:
    info = next(detail for detail in status["details"] if detail["@type"].endswith("ErrorInfo"))
    assert info["domain"] == "aivo"
    return info["reason"], info.get("metadata", {})


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason


@pytest.fixture
async def brain_stub(aivo: Stack) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(aivo.brain_server.address) as channel:
        yield brain_grpc.BrainServiceStub(channel)


@pytest.fixture
async def cloning_stub(aivo: Stack) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(aivo.cloning_server.address) as channel:
        yield cloning_grpc.CloningServiceStub(channel)


@pytest.mark.parametrize(("fault", "field"), GENERATE_FAULTS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("route", ["/v1/generate", "/v1/generate/stream"])
async def test_a_field_at_fault_is_named(
    brain: httpx.AsyncClient, route: str, fault: dict[str, Any], field: str
) -> None:
    refused = await brain.post(route, json=ASK | fault)

    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert reason_in(refused.json())[0] == "INVALID_FIELD"
    assert fields_in(refused.json()) == {field}


@pytest.mark.parametrize(("fault", "field"), GENERATE_FAULTS, ids=lambda value: str(value)[:40])
async def test_a_field_at_fault_is_named_over_grpc(brain_stub: Any, fault: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await brain_stub.Generate(ParseDict(ASK | fault, brain_pb.GenerateRequest()))

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(raised.value)
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert [violation.field for violation in bad_request.field_violations] == [field]


async def test_all_faults_are_told_at_once(brain: httpx.AsyncClient) -> None:
    refused = await brain.post("/v1/generate", json={"prompt": "", "top_p": 3, **context(grade="13", disability="?")})

    assert fields_in(refused.json()) == {"prompt", "top_p", "context.grade", "context.disability"}


@pytest.mark.parametrize(("name", "value", "field"), CLONE_FAULTS, ids=lambda value: str(value)[:40])
async def test_a_clone_with_a_field_at_fault_is_refused(
    cloning: httpx.AsyncClient, name: str, value: object, field: str
) -> None:
    refused = await cloning.post("/v1/clone/start", json=start_body("refused") | {name: value})

    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert fields_in(refused.json()) == {field}


async def test_a_prompt_longer_than_the_context_window_is_refused(brain: httpx.AsyncClient) -> None:
    turns = [{"role": role, "text": "why " * 1990} for role in ("ROLE_STUDENT", "ROLE_TUTOR")] * 4
    refused = await brain.post("/v1/generate", json=ASK | {"history": turns})

    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert reason_in(refused.json())[0] == "INVALID_FIELD"


@pytest.mark.parametrize("path", ["status", "watch"])
async def test_an_unknown_clone_is_not_found(cloning: httpx.AsyncClient, path: str) -> None:
    missing = await cloning.get(f"/v1/clone/clone_nothing/{path}")

    assert missing.status_code == httpx.codes.NOT_FOUND
    assert reason_in(missing.json()) == ("CLONE_NOT_FOUND", {"clone_id": "clone_nothing"})


async def test_a_required_model_that_is_not_there_is_not_found(brain: httpx.AsyncClient, brain_stub: Any) -> None:
    ask = ASK | context(student_id="nobody") | {"adapter_policy": "ADAPTER_POLICY_REQUIRE"}
    for route in ("/v1/generate", "/v1/generate/stream"):
        missing = await brain.post(route, json=ask)
        assert missing.status_code == httpx.codes.NOT_FOUND
        assert reason_in(missing.json()) == ("STUDENT_MODEL_NOT_FOUND", {"student_id": "nobody"})
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await brain_stub.Generate(ParseDict(ask, brain_pb.GenerateRequest()))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_pinned_version_that_is_not_there_is_not_found(brain: httpx.AsyncClient) -> None:
    missing = await brain.post("/v1/generate", json=ASK | context(student_id="nobody") | {"adapter_version": 7})

    assert missing.status_code == httpx.codes.NOT_FOUND
    assert reason_in(missing.json()) == ("MODEL_VERSION_NOT_FOUND", {"student_id": "nobody", "version": "7"})


async def test_a_base_model_answer_says_why(brain: httpx.AsyncClient) -> None:
    named = (await brain.post("/v1/generate", json=ASK | context(student_id="nobody"))).json()
    unnamed = (await brain.post("/v1/generate", json=ASK)).json()

    assert named["fallback"] == "FALLBACK_REASON_NO_STUDENT_MODEL"
    assert unnamed["fallback"] == "FALLBACK_REASON_NO_STUDENT"


async def test_the_same_request_twice_is_one_clone_and_another_body_is_refused(
    cloning: httpx.AsyncClient, cloning_stub: Any
) -> None:
    body = start_body("twice", request_id="enrol-17")
    first = await cloning.post("/v1/clone/start", json=body)
    again = await cloning.post("/v1/clone/start", json=body)
    other = await cloning.post("/v1/clone/start", json=body | {"student_profile": {"grade": "6"}})
    running = await cloning.post("/v1/clone/start", json=body | {"request_id": "enrol-18"})
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await cloning_stub.StartClone(ParseDict(body | {"request_id": ""}, cloning_pb.StartCloneRequest()))

    clone_id = first.json()["clone_id"]
    assert again.json() == first.json()
    assert other.status_code == httpx.codes.CONFLICT
    assert reason_in(other.json()) == ("REQUEST_ID_REUSED", {"request_id": "enrol-17", "clone_id": clone_id})
    assert running.status_code == httpx.codes.CONFLICT
    assert reason_in(running.json()) == ("CLONE_ALREADY_RUNNING", {"student_id": "twice", "clone_id": clone_id})
    assert raised.value.code() is grpc.StatusCode.ABORTED
    async with cloning.stream("GET", f"/v1/clone/{clone_id}/watch") as response:
        assert '"status":"completed"' in (await response.aread()).decode()


async def test_a_passed_deadline_stops_the_work(brain_stub: Any, brain: httpx.AsyncClient) -> None:
    long = ParseDict(ASK | {"max_tokens": 1024}, brain_pb.GenerateRequest())
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await brain_stub.Generate(long, timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The gateway passes a REST caller's deadline on, and the next one finds the engine free.
    late = await brain.post("/v1/generate", json=ASK | {"max_tokens": 1024}, headers={"grpc-timeout": "300m"})
    assert late.status_code == httpx.codes.GATEWAY_TIMEOUT
    assert (await brain.post("/v1/generate", json=ASK)).status_code == httpx.codes.OK


async def test_a_full_queue_is_told_at_once(aivo: Stack, brain: httpx.AsyncClient) -> None:
    """More callers than the engine runs and the queue holds: those too many learn when to come again."""
    async with grpc.aio.insecure_channel(aivo.brain_server.address) as channel:
        stub = brain_grpc.BrainServiceStub(channel)
        streams: list[Any] = [
            stub.GenerateStream(ParseDict(ASK | {"max_tokens": 1024}, brain_pb.GenerateStreamRequest()))
            for _ in range(200)
        ]
        try:
            errors = await _first_refusal(streams)
            over_rest = await brain.post("/v1/generate", json=ASK)
        finally:
            for stream in streams:
                stream.cancel()
    status = rpc_status.from_call(errors)
    assert errors.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(errors) == "QUEUE_FULL"
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0
    assert over_rest.status_code == httpx.codes.TOO_MANY_REQUESTS
    assert reason_in(over_rest.json())[0] == "QUEUE_FULL"
    await _until_ok(brain)


async def test_bodies_that_no_server_sees_are_refused_in_the_same_form(
    brain: httpx.AsyncClient, cloning: httpx.AsyncClient
) -> None:
    answers = {
        httpx.codes.BAD_REQUEST: await brain.post("/v1/generate", content=b'{"prompt": ', headers=JSON),
        httpx.codes.NOT_FOUND: await brain.get("/v1/nothing"),
        httpx.codes.REQUEST_ENTITY_TOO_LARGE: await cloning.post(
            "/v1/clone/start", content=b"x" * (9 << 20), headers=JSON
        ),
    }
    for code, answer in answers.items():
        assert answer.status_code == code
        assert answer.json().keys() >= {"code", "message"}


async def test_adapters_are_not_moved_from_outside(aivo: Stack) -> None:
    async with grpc.aio.insecure_channel(aivo.edge.brain_address) as channel:
        call: Any = channel.unary_unary("/aivo.brain.v1.AdapterService/ListAdapters")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"")
    assert raised.value.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}


async def test_without_the_adapter_store_the_brain_says_so_and_recovers(aivo: Stack, brain: httpx.AsyncClient) -> None:
    student = context(student_id="unseen")
    await aivo.s3.part.stop()
    try:
        required = await brain.post("/v1/generate", json=ASK | student | {"adapter_policy": "ADAPTER_POLICY_REQUIRE"})
        preferred = await brain.post("/v1/generate", json=ASK | student)
        async with asyncio.timeout(30):
            health = await until_status(aivo.edge.brain_url, "degraded")
            await until_status(aivo.edge.cloning_url, "degraded")
    finally:
        await aivo.s3.part.start()

    assert required.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert reason_in(required.json())[0] == "ADAPTER_STORE_UNAVAILABLE"
    away = "FALLBACK_REASON_ADAPTER_STORE_UNAVAILABLE"
    assert preferred.json()["fallback"] == away
    assert "adapter_store" in str(health["reason"])
    await aivo.wait_healthy()
    # That the store was away is remembered for ADAPTER_POINTER_TTL_SECONDS, so that callers do not wait for it in turn.
    async with asyncio.timeout(30):
        while (why := await _fallback_of(brain, student)) == away:  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0.2)
    assert why == "FALLBACK_REASON_NO_STUDENT_MODEL"


async def test_without_the_clone_store_the_cloning_server_says_so_and_recovers(
    aivo: Stack, cloning: httpx.AsyncClient
) -> None:
    await aivo.redis.part.stop()
    try:
        refused = await cloning.post("/v1/clone/start", json=start_body("later"))
        listed = await cloning.get("/v1/clones")
        async with asyncio.timeout(30):
            health = await until_status(aivo.edge.cloning_url, "unhealthy")
    finally:
        await aivo.redis.part.start()

    for answer in (refused, listed):
        assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert reason_in(answer.json())[0] == "CLONE_STORE_UNAVAILABLE"
    assert "clone_store" in str(health["reason"])
    await aivo.wait_healthy()
    assert (await cloning.get("/v1/clones")).status_code == httpx.codes.OK


async def _first_refusal(streams: list[Any]) -> grpc.aio.AioRpcError:
    for finished in asyncio.as_completed([stream.wait_for_connection() for stream in streams]):
        try:
            await finished
        except grpc.aio.AioRpcError as error:
            return error
    raise AssertionError("every call was let in")


async def _fallback_of(brain: httpx.AsyncClient, student: dict[str, Any]) -> str:
    return str((await brain.post("/v1/generate", json=ASK | student)).json()["fallback"])


async def _until_ok(brain: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while (await brain.post("/v1/generate", json=ASK)).status_code != httpx.codes.OK:  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0.1)


async def test_callers_who_go_away_free_their_rows(aivo: Stack, brain: httpx.AsyncClient, brain_stub: Any) -> None:
    """Both over gRPC and as a browser behind the gateway, more of them than there are rows."""
    long = ASK | {"max_tokens": 1024}
    for _ in range(3):
        stream = brain_stub.GenerateStream(ParseDict(long, brain_pb.GenerateStreamRequest()))
        await anext(aiter(stream))
        stream.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stream.code()
    await asyncio.gather(*(_first_frame_of(brain, long) for _ in range(20)))
    # A reply of 1,024 tokens takes a minute or more.
    async with asyncio.timeout(20):
        while await _running(aivo):  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0.1)


async def _first_frame_of(brain: httpx.AsyncClient, request: dict[str, Any]) -> None:
    async with brain.stream("POST", "/v1/generate/stream", json=request) as response:
        await anext(response.aiter_lines())


async def _running(aivo: Stack) -> float:
    async with httpx.AsyncClient() as client:
        figures = (await client.get(aivo.brain_server.metrics_url)).text
    values = [
        float(line.split()[1])
        for line in figures.splitlines()
        if line.startswith(("aivo_engine_running ", "aivo_engine_waiting "))
    ]
    assert len(values) == 2, "without these metrics the brain would look idle"
    return sum(values)
