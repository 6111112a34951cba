"""All that is held of a student, as ExportStudent returns it."""

import pytest
from aivo.cloning.v1 import student_service_pb2 as student_pb
from aivo.safety.v1 import safety_pb2
from google.protobuf.json_format import MessageToDict
from pydantic import SecretStr
from redis.asyncio import Redis

from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from mesh.alerts.alert import NewFinding
from mesh.alerts.alert_store import AlertStore
from mesh.errors import InvalidField, StudentNotFound
from tests.cloning_server.conftest import NAME, STUDENT, Cloning, CloningStub, order, raised
from tests.cloning_server.students.calls import clone, delete


async def export(stub: CloningStub, student_id: str = STUDENT, **fields: object) -> student_pb.ExportStudentResponse:
    request = student_pb.ExportStudentRequest(student_id=student_id, **fields)  # type: ignore[arg-type]
    response: student_pb.ExportStudentResponse = await stub.ExportStudent(request)
    return response


async def test_an_export_holds_clones_baselines_models_and_alerts(cloning: Cloning, stub: CloningStub) -> None:
    ended = await clone(stub, request_id="enrol")
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    gate.reached.clear()
    request = order()
    request.student_profile.interests.append("cats")
    runs = (await stub.StartClone(request)).clone_id
    await gate.reached.wait()
    await AlertStore(cloning.redis, tenant=cloning.settings.tenant).record(
        NewFinding(
            finding_id="1", student_id=STUDENT, probabilities={"self_harm": 1.0}, action=3, text="PROMPT",
            guard="rules", request_id="call-1", words="words",
        )
    )  # fmt: skip

    everything = await export(stub)

    assert [exported.clone.clone_id for exported in everything.clones] == [runs, ended]
    first, second = everything.clones
    assert first.baseline_data == request.baseline_data
    request.student_profile.name = ""
    assert first.student_profile == request.student_profile
    assert (second.request_id, second.HasField("baseline_data"), second.clone.model.active) == ("enrol", False, True)
    (model,) = everything.models
    assert (everything.active_version, model.model.version, model.model.active) == (1, 1, True)
    manifest = MessageToDict(model.manifest)
    assert (manifest["recipe"]["clone_id"], manifest["recipe"]["profile"]) == (ended, {"grade": "5"})
    assert model.model.HasField("policy")
    (alert,) = everything.alerts
    assert (alert.words, alert.action, alert.text) == (
        "words", safety_pb2.SAFETY_ACTION_SUPPORT, safety_pb2.SCREENED_TEXT_PROMPT,
    )  # fmt: skip
    assert alert.categories[0].category == safety_pb2.SAFETY_CATEGORY_SELF_HARM
    assert (everything.more_models, everything.more_alerts, everything.next_page_token) == (False, False, "")
    assert NAME not in str(everything)


async def test_a_baseline_that_can_not_be_opened_is_named_and_hides_nothing_else(cloning: Cloning) -> None:
    cloning.trainer.seats = 0
    async with cloning.serve() as stub:
        await stub.StartClone(order())
    cloning.set(master_key=SecretStr("c3" * 32))
    async with cloning.serve() as stub:
        (exported,) = (await export(stub)).clones
    assert (exported.clone.status, exported.baseline_unreadable) == ("queued", True)
    assert not exported.HasField("baseline_data")


async def test_an_export_comes_in_pages_of_clones_with_the_rest_on_the_first(stub: CloningStub) -> None:
    clone_ids = [await clone(stub) for _ in range(3)]
    first = await export(stub, page_size=2)
    second = await export(stub, page_size=2, page_token=first.next_page_token)
    assert [exported.clone.clone_id for page in (first, second) for exported in page.clones] == clone_ids[::-1]
    assert (len(first.models), len(second.models), second.next_page_token) == (3, 0, "")
    active = [exported.clone.model.active for page in (first, second) for exported in page.clones]
    assert (first.active_version, second.active_version, active) == (3, 3, [True, False, False])
    with raised() as failure:
        await export(stub, "another", page_token=first.next_page_token)
    assert isinstance(failure.error, InvalidField)


async def test_of_a_student_whose_only_clone_can_not_be_read_something_is_held(
    cloning: Cloning, stub: CloningStub, redis: Redis, clones: CloneStore
) -> None:
    clone_id = await clone(stub)
    prefix = clones.channel.removesuffix("changes")
    await redis.delete(f"{prefix}feed:{clone_id}")
    await cloning.adapters.delete_student(STUDENT, clone_ids=[clone_id])
    assert list((await export(stub)).clones) == []


async def test_nothing_is_held_of_a_stranger_or_of_a_deleted_student(stub: CloningStub) -> None:
    await clone(stub)
    await delete(stub)
    for student_id in ("stranger", STUDENT):
        with raised() as failure:
            await export(stub, student_id)
        assert isinstance(failure.error, StudentNotFound)
        assert failure.error.facts == {"student_id": student_id}


async def test_an_export_stays_within_what_clients_take(cloning: Cloning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloning_server.edge.export_wire.MAX_PAGE_BYTES", 1000)
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    async with cloning.serve() as stub:
        await stub.StartClone(order(responses=40))
        page = await export(stub)
    (exported,) = page.clones
    assert len(exported.baseline_data.responses) + exported.responses_left_out == 40
    # Of the baseline, what is not a response is not counted.
    assert page.ByteSize() <= 1100
    assert exported.baseline_data.responses
