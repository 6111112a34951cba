"""StudentModelService through a real server: what it lists, and what it refuses to list."""

from dataclasses import replace

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_model_pb2 as model_pb
from aivo.cloning.v1 import student_model_service_pb2 as models_pb

from mesh.adapters.store import AdapterStore
from mesh.errors import (
    InvalidField,
    TrainerUnavailable,
)
from mesh.paging import token_after
from testing.adapters import publish
from testing.models.random_adapters import random_weights, recipe
from testing.scripted.trainer import FACTS
from tests.cloning_server.conftest import STUDENT, Cloning, CloningStub, order, raised, watch_all


async def test_models_are_listed_page_by_page(stub: CloningStub) -> None:
    for _ in range(3):
        await watch_all(stub, (await stub.StartClone(order())).clone_id)
    first = await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT, page_size=2))
    assert [model.version for model in first.models] == [3, 2]
    rest = await stub.ListStudentModels(
        models_pb.ListStudentModelsRequest(student_id=STUDENT, page_token=first.next_page_token)
    )
    assert ([model.version for model in rest.models], rest.next_page_token) == ([1], "")
    # Every page names the active version, even if another page lists it.
    assert first.active_version == rest.active_version == 3


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (models_pb.ListStudentModelsRequest(student_id=STUDENT, page_size=-1), "page_size"),
        (models_pb.ListStudentModelsRequest(student_id=STUDENT, page_token="junk"), "page_token"),
        (models_pb.ListStudentModelsRequest(student_id=STUDENT, page_token=token_after(3, "clones")), "page_token"),
    ],
)
async def test_a_page_of_models_that_cannot_be_is_refused(
    stub: CloningStub, request_: models_pb.ListStudentModelsRequest, field: str
) -> None:
    with raised() as refused:
        await stub.ListStudentModels(request_)
    assert isinstance(refused.error, InvalidField)
    assert [violation.field for violation in refused.error.violations] == [field]


async def test_a_model_is_told_with_its_origin_and_its_measures(stub: CloningStub, adapters: AdapterStore) -> None:
    started = await stub.StartClone(order(responses=6))
    await watch_all(stub, started.clone_id)
    (model,) = (await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))).models
    (manifest,) = await adapters.list_versions(STUDENT)
    assert (model.version, model.active, model.sha256) == (1, True, manifest.sha256)
    assert (model.bytes, model.clone_id) == (manifest.size_bytes, started.clone_id)
    assert (model.base_model, model.base_digest) == (FACTS.model, "0" * 64)
    assert (model.lora.rank, model.lora.alpha, model.lora.scale) == (16, 32, 1.25)
    assert list(model.lora.target_modules) == ["q_proj", "v_proj"]
    assert (model.examples.responses, model.examples.train, model.examples.heldout) == (6, 5, 1)
    assert (model.metrics.heldout_loss_base, model.metrics.heldout_loss_adapter) == (2.5, 1.5)
    assert not model.pinned
    assert not model.outdated
    # All three are looked up for a list alone.
    assert model.HasField("outdated")
    assert model.HasField("policy")
    for field in ("pinned", "outdated", "policy"):
        model.ClearField(field)
    assert (await stub.GetClone(pb.GetCloneRequest(clone_id=started.clone_id))).model == model


async def test_a_model_is_told_with_the_teaching_policy_of_its_answers(stub: CloningStub) -> None:
    request = order(responses=8)
    request.student_profile.interests.extend(["cats", "rock climbing"])
    for response in request.baseline_data.responses:
        response.is_correct = False
        response.student_answer = "I don't know."
    await watch_all(stub, (await stub.StartClone(request)).clone_id)
    (model,) = (await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))).models
    policy = model.policy
    assert policy.writing.level == model_pb.WRITING_LEVEL_UNKNOWN
    assert "not enough answers" in policy.writing.sentence
    (support,) = policy.scaffolding.skills
    assert (support.skill, support.scaffold) == ("adding", model_pb.SCAFFOLD_RECAP)
    assert (support.correct, support.judged) == (0, 8)
    assert (policy.mistakes.kind, policy.mistakes.blank) == (model_pb.MISTAKE_KIND_BLANK, 8)
    assert policy.mistakes.habit in policy.mistakes.sentence
    assert (policy.guidance.level, policy.guidance.requests) == (model_pb.GUIDANCE_LEVEL_MUCH, 8)
    assert list(policy.interests.interests) == ["cats", "rock climbing"]
    assert policy.interests.sentence == "Is interested in cats and rock climbing."


async def test_a_model_of_before_policies_is_told_without_one(stub: CloningStub, adapters: AdapterStore) -> None:
    await publish(adapters, STUDENT, random_weights(1), recipe=recipe(base_digest="0" * 64))
    (model,) = (await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))).models
    assert not model.HasField("policy")


def forged_tokens() -> list[str]:
    """Tokens of the list of outdated students with positions that no page ends at."""
    positions = ["", "../other", "a/v1", "é", "_other", "a\0", "a" * 5_000]
    return [token_after(position, "outdated students") for position in positions]


async def outdated_pages(stub: CloningStub, *, size: int) -> list[models_pb.ListOutdatedStudentsResponse]:
    pages = [await stub.ListOutdatedStudents(models_pb.ListOutdatedStudentsRequest(page_size=size))]
    while pages[-1].next_page_token:
        request = models_pb.ListOutdatedStudentsRequest(page_size=size, page_token=pages[-1].next_page_token)
        pages.append(await stub.ListOutdatedStudents(request))
    return pages


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
async def test_students_of_another_main_brain_are_listed_page_by_page(
    cloning: Cloning, adapters: AdapterStore, size: int
) -> None:
    students = [f"s{number}" for number in range(3)] + ["s", "s-1", "s.1"]
    for number, student_id in enumerate(students):
        await publish(adapters, student_id, random_weights(number), recipe=recipe(base_digest="e" * 64))
    await publish(adapters, "current", random_weights(9), recipe=recipe(base_digest="0" * 64))
    async with cloning.serve() as stub:
        pages = await outdated_pages(stub, size=size)
        assert sorted(student.student_id for page in pages for student in page.students) == sorted(students)
        assert {page.main_brain for page in pages} == {"0" * 64}
        first = next(student for page in pages for student in page.students)
        assert (first.version, first.base_digest, first.base_model) == (1, "e" * 64, FACTS.model)
        (model,) = (await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id="s"))).models
        assert model.outdated
        await watch_all(stub, (await stub.StartClone(order("s1"))).clone_id)
        later_pages = await outdated_pages(stub, size=size)
        assert "s1" not in {student.student_id for page in later_pages for student in page.students}


async def test_without_a_trainer_nobody_knows_which_models_are_outdated(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.facts = replace(FACTS, ready=False, reason="it starts", main_brain="")
    with raised() as failure:
        await stub.ListOutdatedStudents(models_pb.ListOutdatedStudentsRequest())
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(failure.error, TrainerUnavailable)
    assert not (await stub.GetHealth(pb.GetHealthRequest())).main_brain


@pytest.mark.parametrize("token", ["junk", token_after(3, "clones"), *forged_tokens()])
async def test_an_outdated_list_refuses_a_token_that_it_did_not_give(stub: CloningStub, token: str) -> None:
    with raised() as refused:
        await stub.ListOutdatedStudents(models_pb.ListOutdatedStudentsRequest(page_token=token))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(refused.error, InvalidField)
    assert [violation.field for violation in refused.error.violations] == ["page_token"]


async def test_a_student_without_a_model_gets_an_empty_list(stub: CloningStub) -> None:
    response = await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id="nobody"))
    assert response == models_pb.ListStudentModelsResponse(student_id="nobody")


async def test_models_of_a_malformed_student_id_are_refused(stub: CloningStub) -> None:
    with raised() as failure:
        await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id="../x"))
    assert isinstance(failure.error, InvalidField)
