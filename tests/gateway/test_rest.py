"""JSON through the transcoder: the seed's requests, every route, every error."""

import json

import grpc
import httpx
import pytest
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from aivo.cloning.v1 import student_model_service_pb2 as models_pb
from aivo.cloning.v1 import student_service_pb2 as students_pb

from testing.scripted.cloning_server import CLONE_ID
from testing.scripted.script import BASE_MODEL, Script, failure, info

Code = grpc.StatusCode
JSON = {"content-type": "application/json"}

GENERATE = {
    "prompt": "Explain photosynthesis in simple terms",
    "context": {
        "student_id": "student123",
        "grade": "5",
        "subject": "Science",
        "learning_style": "visual",
        "disability": "adhd",
    },
    "temperature": 0.7,
}
START = {
    "student_id": "student123",
    "student_profile": {"name": "Alex", "grade": "5", "disability": "adhd", "learning_style": "visual"},
    "baseline_data": {
        "assessment_id": "baseline_001",
        "responses": [{"question": "What do plants eat?", "student_answer": "Light", "is_correct": False}],
        "overall_score": 75.5,
    },
}


async def test_the_seeds_generate_request_gets_the_seeds_fields(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    answer = await brain_rest.post("/v1/generate", json=GENERATE)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    body = answer.json()
    assert body["response"] == "Plants make food."
    assert (body["model"], body["tokens_used"]) == (BASE_MODEL, 156)
    assert body["timestamp"] == "2025-01-15T10:30:00Z"
    assert body["adapter"]["student_id"] == "student123"
    request = brain.calls[-1].request
    assert isinstance(request, brain_pb.GenerateRequest)
    assert (request.context.learning_style, request.temperature) == ("visual", 0.7)


async def test_the_seeds_clone_request_gets_the_seeds_fields(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    body = (await cloning_rest.post("/v1/clone/start", json=START)).json()

    assert (
        body
        | {
            "clone_id": CLONE_ID,
            "student_id": "student123",
            "status": "cloning_started",
            "estimated_time_seconds": 45,
        }
        == body
    )
    request = cloning.calls[-1].request
    assert isinstance(request, cloning_pb.StartCloneRequest)
    assert request.baseline_data.overall_score == 75.5
    assert request.baseline_data.responses[0].HasField("is_correct")


@pytest.mark.parametrize(
    ("method", "path", "rpc", "fields"),
    [
        ("POST", "/v1/assess", "Assess", {"correctness": 85.0, "understanding_level": "good"}),
        ("GET", "/health", "GetHealth", {"status": "healthy", "model_loaded": True, "gpu_available": False}),
    ],
)
async def test_each_route_of_the_brain_reaches_its_rpc(
    brain_rest: httpx.AsyncClient, brain: Script, *, method: str, path: str, rpc: str, fields: dict[str, object]
) -> None:
    body = (await brain_rest.request(method, path, json={} if method == "POST" else None)).json()

    assert brain.calls[-1].rpc == rpc
    assert body | fields == body


@pytest.mark.parametrize(
    ("path", "rpc", "request_"),
    [
        (f"/v1/clone/{CLONE_ID}/status", "GetClone", cloning_pb.GetCloneRequest(clone_id=CLONE_ID)),
        (
            "/v1/clones?student_id=student123&page_size=5&page_token=t",
            "ListClones",
            cloning_pb.ListClonesRequest(student_id="student123", page_size=5, page_token="t"),
        ),
        ("/v1/students/a%2Eb/models", "ListStudentModels", models_pb.ListStudentModelsRequest(student_id="a.b")),
        (
            "/v1/students/student123/export?page_size=5&page_token=t",
            "ExportStudent",
            students_pb.ExportStudentRequest(student_id="student123", page_size=5, page_token="t"),
        ),
        (
            "/v1/models/outdated?page_size=5&page_token=t",
            "ListOutdatedStudents",
            models_pb.ListOutdatedStudentsRequest(page_size=5, page_token="t"),
        ),
        # An escaped slash does not part the path: the id arrives whole, and the server refuses it.
        ("/v1/students/..%2Fx/models", "ListStudentModels", models_pb.ListStudentModelsRequest(student_id="../x")),
        ("/health", "GetHealth", cloning_pb.GetHealthRequest()),
    ],
)
async def test_each_route_of_the_cloning_server_reaches_its_rpc(
    cloning_rest: httpx.AsyncClient, cloning: Script, path: str, rpc: str, request_: object
) -> None:
    answer = await cloning_rest.get(path)

    assert answer.status_code == 200
    assert (cloning.calls[-1].rpc, cloning.calls[-1].request) == (rpc, request_)


async def test_zero_values_are_printed_and_nobody_may_keep_the_reply(
    brain_rest: httpx.AsyncClient, brain: Script
) -> None:
    answer = await brain_rest.get("/health")

    assert answer.json()["gpu_available"] is False
    assert answer.json()["reason"] == ""
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("code", "reason", "http"),
    [
        (Code.INVALID_ARGUMENT, "INVALID_FIELD", 400),
        (Code.FAILED_PRECONDITION, "ADAPTER_INCOMPATIBLE", 400),
        (Code.NOT_FOUND, "STUDENT_MODEL_NOT_FOUND", 404),
        (Code.ABORTED, "CLONE_ALREADY_RUNNING", 409),
        (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED", 409),
        (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 429),
        (Code.DATA_LOSS, "ADAPTER_CORRUPT", 500),
        (Code.INTERNAL, "INTERNAL", 500),
        (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", 504),
    ],
)
@pytest.mark.parametrize("path", ["/v1/generate", "/v1/generate/stream"])
async def test_an_error_keeps_its_reason_and_gets_its_http_code(
    brain_rest: httpx.AsyncClient, brain: Script, *, path: str, code: grpc.StatusCode, reason: str, http: int
) -> None:
    brain.failures.append(failure(code, reason, clone_id="c1"))

    answer = await brain_rest.post(path, json=GENERATE)

    assert (answer.status_code, answer.headers["content-type"]) == (http, "application/json")
    assert answer.json() == {
        "code": code.value[0],
        "message": f"it failed with {reason}",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason,
                "domain": "aivo",
                "metadata": {"clone_id": "c1"},
            }
        ],
    }
    assert len(brain.calls) == 1, "only UNAVAILABLE is tried again"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"prompt": "my secret', "Closing quote expected in string."),
        ('{"prompt": "my secret"} secret', "Parsing terminated before end of input."),
        (b'{"prompt": "my secret \xff\xfe secret"}', "Encountered non UTF-8 code points."),
        ('{"prompt": "x", "max_tokens": "secret"}', "max_tokens: a value that is not of type TYPE_UINT32"),
        (
            r'{"prompt": "x", "max_tokens": "secret\r\n for type secret"}',
            "max_tokens: a value that is not of type TYPE_UINT32",
        ),
        ('{"prompt": "x", "max_tokens": -5}', "max_tokens: a value that is not of type TYPE_UINT32"),
        (
            '{"prompt": "x", "adapter_policy": "secret for type secret"}',
            "adapter_policy: a value that is not of type type.googleapis.com/aivo.brain.v1.AdapterPolicy",
        ),
    ],
)
async def test_a_malformed_body_is_named_without_its_words(
    brain_rest: httpx.AsyncClient, brain: Script, body: str | bytes, message: str
) -> None:
    answer = await brain_rest.post("/v1/generate", content=body, headers=JSON)

    assert answer.status_code == 400
    assert answer.json() == {"code": 3, "message": message, "details": [info("MALFORMED_REQUEST")]}
    assert brain.calls == []


@pytest.mark.parametrize("value", ["secret", "secret\nsecret", 'secret" of the field x'])
async def test_a_field_with_one_value_in_the_path_and_another_in_the_body_is_named_without_them(
    brain_rest: httpx.AsyncClient, value: str
) -> None:
    answer = await brain_rest.post("/v1/safety/alerts/secret%0Ax/acknowledge", json={"alert_id": value})

    message = "alert_id has another value in the body than in the path"
    assert answer.json() == {"code": 3, "message": message, "details": [info("MALFORMED_REQUEST")]}


async def test_a_malformed_time_is_named_without_words_of_a_library(cloning_rest: httpx.AsyncClient) -> None:
    body = {"consent": {"grant_time": "\x001970-01-01T00:00:00Z"}}
    answer = await cloning_rest.post("/v1/clone/start", json=body)

    message = "consent.grant_time: a value that is not of type Timestamp"
    assert answer.json() == {"code": 3, "message": message, "details": [info("MALFORMED_REQUEST")]}


async def test_a_path_with_a_value_of_the_wrong_type_is_named_without_it(cloning_rest: httpx.AsyncClient) -> None:
    answer = await cloning_rest.post("/v1/students/ada/models/secret/activate", json={"version": 1})

    message = "version: a value that is not of its type"
    assert answer.json() == {"code": 3, "message": message, "details": [info("MALFORMED_REQUEST")]}


async def test_an_unknown_query_parameter_is_named(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    answer = await cloning_rest.get("/v1/clones?pagesize=5")

    assert (answer.status_code, answer.json()["code"]) == (400, 3)
    assert "pagesize" in answer.json()["message"]
    assert cloning.calls == []


async def test_a_body_over_the_limit_is_refused(
    brain_rest: httpx.AsyncClient, cloning_rest: httpx.AsyncClient, brain: Script, cloning: Script
) -> None:
    two_mib = {"student_id": "s", "baseline_data": {"assessment_id": "x" * 2**21}}
    refused = await brain_rest.post("/v1/generate", json=two_mib)
    accepted = await cloning_rest.post("/v1/clone/start", json=two_mib)
    also_refused = await cloning_rest.post("/v1/clone/start", content=json.dumps(two_mib) + " " * 2**23, headers=JSON)

    assert [refused.status_code, accepted.status_code, also_refused.status_code] == [413, 200, 413]
    error_body = {"code": 3, "message": "the body is too large", "details": [info("REQUEST_TOO_LARGE")]}
    assert refused.json() == also_refused.json() == error_body
    assert (len(brain.calls), len(cloning.calls)) == (0, 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/nothing"),
        ("GET", "/v1/generate"),
        ("POST", "/aivo.brain.v1.BrainService/Generate"),
        ("POST", "/aivo.brain.v1.AdapterService/ListAdapters"),
        ("POST", "/v1/clone/start"),
    ],
)
async def test_what_is_no_route_of_the_brain_is_not_found(
    brain_rest: httpx.AsyncClient, brain: Script, method: str, path: str
) -> None:
    answer = await brain_rest.request(method, path)

    assert answer.status_code == 404
    details = [info("ROUTE_NOT_FOUND")]
    assert answer.json() == {"code": 5, "message": "there is no such method and path", "details": details}
    assert brain.calls == []


async def test_a_rest_call_has_a_deadline_that_the_server_sees(
    brain_rest: httpx.AsyncClient, cloning_rest: httpx.AsyncClient, brain: Script, cloning: Script
) -> None:
    await brain_rest.post("/v1/generate", json=GENERATE)
    await cloning_rest.get("/v1/clones")
    await brain_rest.post("/v1/generate/stream", json=GENERATE)

    unary, stream = brain.calls
    assert unary.seconds_left is not None
    assert 100 < unary.seconds_left <= 120
    assert cloning.calls[0].seconds_left is not None
    assert 20 < cloning.calls[0].seconds_left <= 30
    assert stream.seconds_left is None


async def test_a_callers_deadline_stops_the_work(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.hold.clear()

    answer = await brain_rest.post("/v1/generate", json=GENERATE, headers={"grpc-timeout": "200m"})

    assert (answer.status_code, answer.headers["content-type"]) == (504, "application/json")
    assert answer.json() == {
        "code": 4,
        "message": "the deadline passed before the work was done",
        "details": [info("DEADLINE_EXCEEDED")],
    }
    await brain.cancelled.wait()


async def test_callers_cannot_steer_the_gateway_by_header(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    steering = {"x-envoy-max-retries": "9", "x-envoy-retry-on": "5xx", "x-envoy-retry-grpc-on": "internal"}
    brain.failures.append(failure(Code.INTERNAL, "INTERNAL"))

    answer = await brain_rest.post("/v1/generate", json=GENERATE, headers=steering)

    assert (answer.status_code, len(brain.calls)) == (500, 1)
