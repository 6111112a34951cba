"""Errors cross the wire and come back as what they were."""

import asyncio
import json
import re
from pathlib import Path

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.error.v1 import reason_pb2
from google.rpc import error_details_pb2, status_pb2

from mesh import errors
from mesh.errors import (
    AivoError,
    BrainUnavailable,
    InvalidField,
    QueueFull,
    ServerUnreachable,
    StudentModelNotFound,
    Violation,
)
from mesh.rpc.errors import DETAILS_KEY, RemoteError, error_from, error_of, revive, status_of
from mesh.rpc.server import Server
from tests.mesh.rpc.conftest import BrainStub, Logs, ScriptedBrain

SECRET = "my dog died on Tuesday"  # what a student might write

CODES = {
    "INVALID_FIELD": "INVALID_ARGUMENT",
    "MALFORMED_REQUEST": "INVALID_ARGUMENT",
    "METHOD_NOT_FOUND": "UNIMPLEMENTED",
    "REQUEST_TOO_LARGE": "INVALID_ARGUMENT",
    "UNSUPPORTED_MEDIA_TYPE": "INVALID_ARGUMENT",
    "HOST_NOT_ALLOWED": "PERMISSION_DENIED",
    "ORIGIN_NOT_ALLOWED": "PERMISSION_DENIED",
    "ROUTE_NOT_FOUND": "NOT_FOUND",
    "SERVER_UNREACHABLE": "UNAVAILABLE",
    "CLONE_NOT_FOUND": "NOT_FOUND",
    "STUDENT_MODEL_NOT_FOUND": "NOT_FOUND",
    "STUDENT_NOT_FOUND": "NOT_FOUND",
    "MODEL_VERSION_NOT_FOUND": "NOT_FOUND",
    "REQUEST_ID_REUSED": "ALREADY_EXISTS",
    "CLONE_ALREADY_RUNNING": "ABORTED",
    "PUBLISH_CONFLICT": "ABORTED",
    "ADAPTER_INCOMPATIBLE": "FAILED_PRECONDITION",
    "CLONE_FINAL": "FAILED_PRECONDITION",
    "CONSENT_REQUIRED": "FAILED_PRECONDITION",
    "BASELINE_UNREADABLE": "FAILED_PRECONDITION",
    "NO_TRAINABLE_EXAMPLES": "FAILED_PRECONDITION",
    "TRAINING_DIVERGED": "FAILED_PRECONDITION",
    "GATE_NOT_PASSED": "FAILED_PRECONDITION",
    "ADAPTER_CORRUPT": "DATA_LOSS",
    "ALERT_CORRUPT": "DATA_LOSS",
    "CLONE_CORRUPT": "DATA_LOSS",
    "QUEUE_FULL": "RESOURCE_EXHAUSTED",
    "TOO_MANY_WATCHES": "RESOURCE_EXHAUSTED",
    "MODEL_NOT_LOADED": "UNAVAILABLE",
    "SERVER_DRAINING": "UNAVAILABLE",
    "SAFETY_UNAVAILABLE": "UNAVAILABLE",
    "ALERT_STORE_UNAVAILABLE": "UNAVAILABLE",
    "ALERT_NOT_FOUND": "NOT_FOUND",
    "ADAPTER_STORE_UNAVAILABLE": "UNAVAILABLE",
    "CLONE_STORE_UNAVAILABLE": "UNAVAILABLE",
    "KEY_SERVICE_UNAVAILABLE": "UNAVAILABLE",
    "BRAIN_UNAVAILABLE": "UNAVAILABLE",
    "TRAINER_UNAVAILABLE": "UNAVAILABLE",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
}
# Every reason as it is raised, with all the facts that it may have.
REPLIES = {
    "count": 8, "empty": 0, "looping": 0, "well_formed": 7, "mean_tokens": 41.5, "verdicts": 4, "agreeing": 4,
    "unjudged": 4, "judging": 0, "alike": 0, "alike_starts": 2, "signs": 24, "signs_shown": 17,
}  # fmt: skip
RAISED: list[Exception] = [
    InvalidField([Violation("context.grade", "must be one of K, 1, 2")]),
    errors.MalformedRequest("the body is not JSON"),
    errors.MethodNotFound(),
    errors.RequestTooLarge("the body is too large"),
    errors.UnsupportedMediaType("the body is not JSON"),
    errors.HostNotAllowed("another host"),
    errors.OriginNotAllowed("another origin"),
    errors.RouteNotFound("there is no such method and path"),
    errors.ServerUnreachable("nobody answers"),
    errors.CloneNotFound(clone_id="clone_abc123xyz"),
    StudentModelNotFound(student_id="student123"),
    errors.StudentNotFound(student_id="student123"),
    errors.ModelVersionNotFound(student_id="student123", version=7),
    errors.RequestIdReused(request_id="enrol-17", clone_id="clone_abc123xyz"),
    errors.CloneAlreadyRunning(student_id="student123", clone_id="clone_abc123xyz"),
    errors.PublishConflict("the pointer kept moving", student_id="student123"),
    errors.AdapterIncompatible("its rank is too high", student_id="student123", version=2),
    errors.CloneFinal(clone_id="clone_abc123xyz", state="completed"),
    errors.ConsentRequired(student_id="student123"),
    errors.BaselineUnreadable("no key", clone_id="clone_abc123xyz", key="local-9f2c51e07ab34d68"),
    errors.NoTrainableExamples(responses=3, usable=1),
    errors.TrainingDiverged(step=12),
    errors.GateNotPassed(
        faults={"loss_above_previous": "it is no better than the earlier one"},
        heldout_loss=1.71,
        heldout_loss_base=2.5,
        heldout_loss_previous=1.64,
        replies=REPLIES,
        base_replies={**REPLIES, "well_formed": 5, "mean_tokens": 63.2, "agreeing": 3, "judging": 1, "signs_shown": 6},
    ),
    errors.AdapterCorrupt("its sha256 is another", student_id="student123", version=2),
    QueueFull(limit=64, retry_seconds=1.5),
    errors.TooManyWatches(limit=5000),
    errors.ModelNotLoaded("the base model is loading"),
    errors.ServerDraining("the server is shutting down"),
    errors.SafetyUnavailable(),
    errors.AlertStoreUnavailable("Redis does not answer"),
    errors.AlertNotFound(alert_id="alert_abc123xyz"),
    errors.AlertCorrupt(alert_id="alert_abc123xyz"),
    errors.CloneCorrupt(clone_id="clone_abc123xyz"),
    errors.AdapterStoreUnavailable("S3 does not answer"),
    errors.CloneStoreUnavailable("Redis does not answer"),
    errors.KeyServiceUnavailable("the key service does not answer"),
    BrainUnavailable("the brain does not answer", waited_seconds=600),
    errors.TrainerUnavailable("the training actor died"),
    errors.DeadlineExceeded(),
    ValueError("a bug"),
]
PROTOS = Path(__file__).parents[3] / "protos"
REASONS = {name.removeprefix("REASON_") for name, _ in reason_pb2.Reason.items()} - {"UNSPECIFIED"}


async def failure_of(stub: BrainStub) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(prompt=SECRET))
    return caught.value


async def stream_failure_of(stub: BrainStub) -> grpc.aio.AioRpcError:
    call = stub.GenerateStream(pb.GenerateStreamRequest(prompt=SECRET))
    assert (await anext(aiter(call))).text == "so far"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(call))
    return caught.value


def status_in(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    packed = error.trailing_metadata()[DETAILS_KEY]
    assert isinstance(packed, bytes)
    return status_pb2.Status.FromString(packed)


def test_every_reason_of_the_contract_belongs_to_one_class_and_every_class_has_one_of_them() -> None:
    def kinds(root: type[AivoError]) -> list[type[AivoError]]:
        return [subclass for kind in root.__subclasses__() for subclass in (kind, *kinds(kind))]

    with_reason = [kind for kind in kinds(AivoError) if "reason" in vars(kind)]
    assert sorted(kind.reason for kind in with_reason) == sorted(REASONS)
    leaves = [kind for kind in kinds(AivoError) if not kind.__subclasses__()]
    assert all(kind.reason in REASONS for kind in leaves)
    assert CODES.keys() | {"INTERNAL"} == REASONS


@pytest.mark.parametrize("reason", CODES)
async def test_a_reason_arrives_with_its_code_and_facts(reason: str, brain: ScriptedBrain, stub: BrainStub) -> None:
    brain.raises(revive(reason, "what happened", {"student_id": "student123"}))
    for error in (await failure_of(stub), await stream_failure_of(stub)):
        status = status_in(error)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert error.code().name == CODES[reason]
        assert (status.code, status.message) == (error.code().value[0], error.details())
        assert (info.reason, info.domain) == (reason, "aivo")
        assert info.metadata == {"student_id": "student123"}


def examples() -> dict[str, dict[str, str]]:
    """The metadata of each reason's example in the contract."""
    proto = (PROTOS / "aivo/error/v1/reason.proto").read_text()
    metadata: dict[str, dict[str, str]] = {}
    for comment, name in re.findall(r"((?: +//.*\n)+) +REASON_(\w+) = [1-9]", proto):
        example = json.loads("".join(re.findall(r"// {4,}(.*)", comment)))
        info = example["details"][0] if "details" in example else example
        assert (info["reason"], info["domain"]) == (name, "aivo")
        metadata[name] = info.get("metadata", {})
    return metadata


async def test_every_reason_is_raised_with_the_facts_of_its_example(brain: ScriptedBrain, stub: BrainStub) -> None:
    expected = examples()
    metadata = {}
    for error in RAISED:
        brain.raises(error)
        info = error_details_pb2.ErrorInfo()
        assert status_in(await failure_of(stub)).details[0].Unpack(info)
        metadata[info.reason] = {name: info.metadata[name] for name in info.metadata}
    assert metadata.keys() == expected.keys() == REASONS
    del metadata["INTERNAL"]["call_id"], expected["INTERNAL"]["call_id"]
    assert metadata == expected


async def test_an_error_is_its_own_class_again_at_the_caller(brain: ScriptedBrain, stub: BrainStub) -> None:
    brain.raises(StudentModelNotFound(student_id="student123"))
    error = error_of(await failure_of(stub))
    assert type(error) is StudentModelNotFound
    assert str(error) == "student student123 has no active model"
    assert error.facts == {"student_id": "student123"}


async def test_every_field_at_fault_is_named(brain: ScriptedBrain, stub: BrainStub) -> None:
    violations = (Violation("prompt", "must not be empty"), Violation("context.grade", "must be one of K, 1, 2"))
    brain.raises(InvalidField(violations))
    for failure in (await failure_of(stub), await stream_failure_of(stub)):
        bad_request = error_details_pb2.BadRequest()
        assert status_in(failure).details[1].Unpack(bad_request)
        assert [(v.field, v.description) for v in bad_request.field_violations] == [
            ("prompt", "must not be empty"),
            ("context.grade", "must be one of K, 1, 2"),
        ]
        assert failure.details() == "prompt: must not be empty; context.grade: must be one of K, 1, 2"
        error = error_of(failure)
        assert isinstance(error, InvalidField)
        assert error.violations == violations


async def test_more_faults_than_trailers_can_hold_are_counted(brain: ScriptedBrain, stub: BrainStub) -> None:
    brain.raises(
        InvalidField(
            [Violation(f"baseline_data.responses[{n}].question", "must not be empty … " * 2) for n in range(1000)]
        )
    )
    error = error_of(await failure_of(stub))
    assert isinstance(error, InvalidField)
    assert 10 < len(error.violations) < 1000
    assert str(error).startswith(f"1000 violations, of which these are the first {len(error.violations)}: ")


async def test_a_full_queue_says_when_to_come_again(brain: ScriptedBrain, stub: BrainStub) -> None:
    brain.raises(QueueFull(limit=64, retry_seconds=1.5))
    failure = await failure_of(stub)
    retry = error_details_pb2.RetryInfo()
    assert status_in(failure).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
    error = error_of(failure)
    assert isinstance(error, QueueFull)
    assert (error.retry_seconds, error.facts) == (1.5, {"limit": "64"})


async def test_a_bug_tells_its_call_id_and_nothing_of_its_message(
    brain: ScriptedBrain, stub: BrainStub, logs: Logs
) -> None:
    brain.raises(ValueError(SECRET))
    for failure in (await failure_of(stub), await stream_failure_of(stub)):
        error = error_of(failure)
        assert isinstance(error, RemoteError)
        assert failure.code() is error.code is grpc.StatusCode.INTERNAL
        assert SECRET not in str(failure)
        (line,) = logs.of("call_failed", call_id=error.facts["call_id"])
        assert line["exception"].startswith("builtins.ValueError\n")
        assert "ScriptedBrain.raises" in line["exception"]
        assert line["level"] == "error"
    assert SECRET not in logs.text


async def test_a_remote_error_that_a_servicer_lets_through_is_a_bug_of_this_server(
    brain: ScriptedBrain, stub: BrainStub, logs: Logs
) -> None:
    brain.raises(RemoteError(SECRET, code=grpc.StatusCode.UNKNOWN))
    error = error_of(await failure_of(stub))
    assert isinstance(error, RemoteError)
    assert error.code is grpc.StatusCode.INTERNAL
    (line,) = logs.of("call_failed", call_id=error.facts["call_id"])
    assert line["exception"].startswith("mesh.rpc.errors.RemoteError: the call failed with UNKNOWN\n")
    assert SECRET not in error.details
    assert SECRET not in logs.text


async def test_a_task_cancelled_inside_the_server_is_a_bug_and_not_silence(
    brain: ScriptedBrain, stub: BrainStub
) -> None:
    brain.raises(asyncio.CancelledError())
    assert (await failure_of(stub)).code() is grpc.StatusCode.INTERNAL
    assert (await stream_failure_of(stub)).code() is grpc.StatusCode.INTERNAL


async def test_a_timeout_that_is_not_the_callers_is_a_bug(brain: ScriptedBrain, stub: BrainStub) -> None:
    brain.raises(TimeoutError())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(prompt="Why?"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_server_that_is_not_there_is_what_the_caller_says_it_is(server: Server) -> None:
    await server.stop()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        failure = await failure_of(BrainServiceStub(channel))
    assert isinstance(error_of(failure, unreachable=BrainUnavailable), BrainUnavailable)
    assert isinstance(error_of(failure), ServerUnreachable)


def test_details_of_another_domain_are_not_taken_for_ours() -> None:
    status = status_pb2.Status(code=5, message="no")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="CLONE_NOT_FOUND", domain="elsewhere.example"))
    error = error_from(status)
    assert isinstance(error, RemoteError)
    assert (error.code, error.details) == (grpc.StatusCode.NOT_FOUND, "no")


def test_a_reason_newer_than_this_caller_is_still_told() -> None:
    status = status_pb2.Status(code=9, message="no consent")
    metadata = {"message": "a name that Python uses too", "student_id": "student123"}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="CONSENT_MISSING", domain="aivo", metadata=metadata))
    error = error_from(status)
    assert isinstance(error, RemoteError)
    assert (error.code, error.details) == (grpc.StatusCode.FAILED_PRECONDITION, "no consent")
    assert error.facts == metadata


def test_an_error_kept_as_reason_and_facts_tells_the_same_status_again() -> None:
    error = errors.ModelVersionNotFound(student_id="student123", version=7)
    again = revive(error.reason, str(error), error.facts)
    assert status_of(again, "id") == status_of(error, "id")
