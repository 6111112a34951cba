"""CloningService through a real server: every answer and every error of the contract."""

import re
from dataclasses import replace

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_model_service_pb2 as models_pb
from google.protobuf.json_format import MessageToDict, ParseDict

from cloning_server.clone import CloneState
from mesh.adapters.ref import StudentKeys
from mesh.adapters.s3 import S3Blobs
from mesh.errors import (
    AdapterCorrupt,
    AdapterStoreUnavailable,
    CloneAlreadyRunning,
    CloneNotFound,
    CloneStoreUnavailable,
    InvalidField,
    KeyServiceUnavailable,
    QueueFull,
    RequestIdReused,
)
from mesh.paging import token_after
from testing.parts.part import free_ports
from testing.scripted.kms import ScriptedKms
from testing.scripted.trainer import FACTS
from tests.cloning_server.conftest import STUDENT, Cloning, CloningStub, order, raised, until, watch_all


async def test_the_seeds_request_gets_the_seeds_shape(stub: CloningStub) -> None:
    request = ParseDict(
        {
            "student_id": "student123",
            "student_profile": {"name": "Alex", "grade": "5", "disability": "adhd", "learning_style": "visual"},
            "baseline_data": {
                "assessment_id": "baseline_001",
                "responses": [
                    {"question": "What do plants eat?", "student_answer": "Sunlight", "is_correct": True},
                    {"question": "What is 3 x 4?", "student_answer": "7", "is_correct": False, "score": 0},
                ],
                "overall_score": 75.5,
            },
        },
        pb.StartCloneRequest(),
    )
    started = MessageToDict(await stub.StartClone(request), preserving_proto_field_name=True)
    clone_id = started.pop("clone_id")
    assert clone_id.startswith("clone_")
    assert started == {
        "student_id": "student123",
        "status": "cloning_started",
        "estimated_time_seconds": 45,
        "state": "CLONE_STATE_QUEUED",
        "queue_position": 1,
    }
    await until(stub, clone_id, "completed")
    status = await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))
    assert (status.clone_id, status.student_id, status.status) == (clone_id, "student123", "completed")
    assert (status.progress, status.state) == (100, pb.CLONE_STATE_COMPLETED)
    assert status.create_time.ToDatetime() < status.update_time.ToDatetime()


async def test_the_same_request_id_and_body_get_the_first_answer(stub: CloningStub) -> None:
    request = order(request_id="enrol-17")
    first = await stub.StartClone(request)
    await watch_all(stub, first.clone_id)
    assert await stub.StartClone(request) == first


async def test_the_name_is_no_part_of_the_body_that_a_request_id_stands_for(stub: CloningStub) -> None:
    first = await stub.StartClone(order(request_id="enrol-17"))
    renamed = order(request_id="enrol-17")
    renamed.student_profile.name = "Another"
    assert await stub.StartClone(renamed) == first


async def test_the_same_request_id_with_another_body_is_refused(stub: CloningStub) -> None:
    first = await stub.StartClone(order(request_id="enrol-17"))
    with raised() as failure:
        await stub.StartClone(order(request_id="enrol-17", responses=5))
    assert failure.code is grpc.StatusCode.ALREADY_EXISTS
    assert isinstance(failure.error, RequestIdReused)
    assert failure.error.facts == {"request_id": "enrol-17", "clone_id": first.clone_id}


async def test_a_second_clone_of_a_student_is_refused_while_the_first_runs(cloning: Cloning, stub: CloningStub) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    first = await stub.StartClone(order())
    await gate.reached.wait()
    with raised() as failure:
        await stub.StartClone(order())
    assert failure.code is grpc.StatusCode.ABORTED
    assert isinstance(failure.error, CloneAlreadyRunning)
    assert failure.error.facts == {"student_id": STUDENT, "clone_id": first.clone_id}
    gate.open()
    await watch_all(stub, first.clone_id)
    await stub.StartClone(order())


async def test_a_full_queue_refuses_and_says_when_to_try_again(cloning: Cloning) -> None:
    cloning.set(clone_queue_limit=2)
    gate = cloning.trainer.gates[CloneState.LOADING_BASE_MODEL]
    gate.shut()
    async with cloning.serve() as stub:
        await stub.StartClone(order("student-0"))
        await gate.reached.wait()
        for n in (1, 2):
            await stub.StartClone(order(f"student-{n}"))
        with raised() as failure:
            await stub.StartClone(order("student-3"))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(failure.error, QueueFull)
    assert failure.error.facts == {"limit": "2"}
    assert failure.error.retry_seconds > 0


async def test_all_faults_of_a_request_are_told_at_once(stub: CloningStub) -> None:
    request = order("../x")
    request.student_profile.grade = "13"
    request.baseline_data.responses[3].question = " "
    request.baseline_data.overall_score = float("nan")
    with raised() as failure:
        await stub.StartClone(request)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(failure.error, InvalidField)
    assert [violation.field for violation in failure.error.violations] == [
        "student_id",
        "student_profile.grade",
        "baseline_data.responses[3].question",
        "baseline_data.overall_score",
    ]


@pytest.mark.parametrize("clone_id", ["", "../x", "a" * 65, "clone\n"])
async def test_a_malformed_clone_id_is_refused(stub: CloningStub, clone_id: str) -> None:
    for call in (
        lambda: stub.GetClone(pb.GetCloneRequest(clone_id=clone_id)),
        lambda: anext(aiter(stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_id)))),
    ):
        with raised() as failure:
            await call()
        assert isinstance(failure.error, InvalidField)
        assert [violation.field for violation in failure.error.violations] == ["clone_id"]


async def test_an_unknown_clone_is_not_found(stub: CloningStub) -> None:
    with raised() as failure:
        await stub.GetClone(pb.GetCloneRequest(clone_id="clone_abc123xyz"))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert isinstance(failure.error, CloneNotFound)
    assert failure.error.facts == {"clone_id": "clone_abc123xyz"}


async def test_clones_are_listed_page_by_page(stub: CloningStub) -> None:
    started = [(await stub.StartClone(order(f"student-{n}"))).clone_id for n in range(5)]
    listed, token = [], ""
    while True:
        page = await stub.ListClones(pb.ListClonesRequest(page_size=2, page_token=token))
        assert len(page.clones) <= 2
        listed += [clone.clone_id for clone in page.clones]
        if not (token := page.next_page_token):
            break
    assert listed == started[::-1]
    mine = await stub.ListClones(pb.ListClonesRequest(student_id="student-3"))
    assert [(clone.clone_id, clone.student_id) for clone in mine.clones] == [(started[3], "student-3")]


async def test_a_page_larger_than_the_limit_is_lowered_and_not_refused(stub: CloningStub) -> None:
    started = await stub.StartClone(order())
    page = await stub.ListClones(pb.ListClonesRequest(page_size=1_000))
    assert [clone.clone_id for clone in page.clones] == [started.clone_id]


async def test_what_is_not_so_is_absent_and_not_zero(stub: CloningStub) -> None:
    started = await stub.StartClone(order())
    assert started.queue_position >= 1
    await watch_all(stub, started.clone_id)
    clone = await stub.GetClone(pb.GetCloneRequest(clone_id=started.clone_id))
    (summary,) = (await stub.ListClones(pb.ListClonesRequest())).clones
    changes = await watch_all(stub, started.clone_id)
    for message in (clone, summary, changes[-1]):
        assert not message.HasField("queue_position")
        assert not message.HasField("estimated_time_seconds")
    assert not clone.HasField("base_version")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListClonesRequest(page_size=-1), "page_size"),
        (pb.ListClonesRequest(page_token="junk"), "page_token"),
        (pb.ListClonesRequest(page_token=token_after("9" * 5_000, "clones")), "page_token"),
        (pb.ListClonesRequest(student_id="../x"), "student_id"),
    ],
)
async def test_a_list_that_cannot_be_is_refused(stub: CloningStub, request_: pb.ListClonesRequest, field: str) -> None:
    with raised() as failure:
        await stub.ListClones(request_)
    assert isinstance(failure.error, InvalidField)
    assert [violation.field for violation in failure.error.violations] == [field]


def nowhere() -> str:
    """An address where nothing listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


async def test_without_the_adapter_store_models_cannot_be_listed_and_clones_can_be_told(cloning: Cloning) -> None:
    async with cloning.serve() as stub:
        started = await stub.StartClone(order())
        await watch_all(stub, started.clone_id)
    cloning.set(s3_endpoint_url=f"http://{nowhere()}", s3_connect_timeout_seconds=0.2)
    async with cloning.serve() as stub:
        with raised() as failure:
            await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert isinstance(failure.error, AdapterStoreUnavailable)
        clone = await stub.GetClone(pb.GetCloneRequest(clone_id=started.clone_id))
        assert (clone.status, clone.model.version) == ("completed", 1)
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert health.status == "degraded"
        assert [part.name for part in health.dependencies if not part.available] == ["adapter_store"]


async def test_a_pointer_that_can_not_be_read_fails_the_list_of_models_and_no_call_about_clones(
    cloning: Cloning, stub: CloningStub, blobs: S3Blobs
) -> None:
    clone_id = (await stub.StartClone(order())).clone_id
    assert (await watch_all(stub, clone_id))[-1].model.active
    key = StudentKeys(student_id=STUDENT, tenant=cloning.settings.tenant).active
    pointer = await blobs.read(key, limit_bytes=1000)
    assert pointer is not None
    await blobs.replace(key, b"{", etag=pointer.etag)

    (joint,) = [change async for change in stub.WatchClones(pb.WatchClonesRequest(clone_ids=[clone_id]))]
    clone, change = await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id)), (await watch_all(stub, clone_id))[-1]
    states = [(state.status, state.model.active) for state in (clone, change, joint)]
    assert states == [("completed", False)] * 3
    with raised() as failure:
        await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))
    assert isinstance(failure.error, AdapterCorrupt)


async def test_without_the_clone_store_every_call_says_so(cloning: Cloning) -> None:
    cloning.set(redis_url=f"redis://{nowhere()}/0")
    async with cloning.serve() as stub:
        for call in (
            lambda: stub.StartClone(order(), timeout=20),
            lambda: stub.GetClone(pb.GetCloneRequest(clone_id="clone_1"), timeout=20),
            lambda: anext(aiter(stub.WatchClone(pb.WatchCloneRequest(clone_id="clone_1"), timeout=20))),
            lambda: stub.ListClones(pb.ListClonesRequest(), timeout=20),
        ):
            with raised() as failure:
                await call()
            assert failure.code is grpc.StatusCode.UNAVAILABLE
            assert isinstance(failure.error, CloneStoreUnavailable)
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert health.status == "unhealthy"
        assert "clone_store" in health.reason


async def test_health_names_every_part_and_counts_the_clones(cloning: Cloning, stub: CloningStub) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    for n in range(3):
        await stub.StartClone(order(f"student-{n}"))
    await gate.reached.wait()
    health = await stub.GetHealth(pb.GetHealthRequest())
    assert (health.status, health.reason, health.model_loaded) == ("healthy", "", True)
    assert (health.device, health.model_name, health.gpu_available) == ("cpu", FACTS.model, False)
    assert (health.running_clones, health.queued_clones) == (1, 2)
    assert [(part.name, part.available) for part in health.dependencies] == [
        ("clone_store", True),
        ("adapter_store", True),
        ("trainer", True),
        ("brain", True),
    ]


async def test_health_says_that_the_brain_is_down_while_clones_are_taken(cloning: Cloning, stub: CloningStub) -> None:
    await cloning.brain.stop()
    health = await stub.GetHealth(pb.GetHealthRequest())
    assert health.status == "degraded"
    assert health.reason.startswith("brain: ")
    await stub.StartClone(order())
    await cloning.brain.start()
    await until_health(stub, "healthy")


async def test_health_names_the_main_brain_and_a_role_that_can_not_be_used(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.facts = replace(FACTS, main_brain="d" * 64, problems=("the tutor can't be used",))
    health = await stub.GetHealth(pb.GetHealthRequest())
    assert (health.status, health.reason, health.main_brain) == ("degraded", "the tutor can't be used", "d" * 64)


async def test_health_says_that_the_key_service_refused_until_the_key_can_be_used_again(
    cloning: Cloning, kms: ScriptedKms
) -> None:
    cloning.set(master_key=None, master_key_kms=("alias/aivo",), kms_endpoint_url=kms.url)
    async with cloning.serve() as stub:
        await until_health(stub, "healthy")
        kms.refusal = "AccessDeniedException"
        with raised() as failure:
            await stub.StartClone(order())
        assert isinstance(failure.error, KeyServiceUnavailable)
        calls = len(kms.calls)
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert health.status == "degraded"
        assert re.fullmatch(
            "the master key kms-[0-9a-f]{16} could not be used the last time: "
            r"the key service refuses calls \(AccessDeniedException\)",
            health.reason,
        )
        kms.refusal = ""
        assert (await stub.GetHealth(pb.GetHealthRequest())).status == "degraded"
        assert len(kms.calls) == calls, "health asks no key service"
        await stub.StartClone(order())
        assert (await stub.GetHealth(pb.GetHealthRequest())).status == "healthy"


async def until_health(stub: CloningStub, status: str) -> pb.GetHealthResponse:
    """Asks until health says this word; the test's own timeout is the limit."""
    while True:
        health = await stub.GetHealth(pb.GetHealthRequest())
        if health.status == status:
            return health


@pytest.mark.parametrize(("device", "status"), [("", "loading"), ("cpu", "degraded")])
async def test_health_tells_a_trainer_that_loads_from_one_that_cannot(
    cloning: Cloning, stub: CloningStub, device: str, status: str
) -> None:
    cloning.trainer.facts = replace(FACTS, ready=False, reason="the base model is not there", device=device)
    health = await stub.GetHealth(pb.GetHealthRequest())
    assert (health.status, health.model_loaded) == (status, False)
    assert health.reason == "trainer: the base model is not there"
    # Clones are taken all the same, and wait.
    await stub.StartClone(order())
