"""Cohorts: who starts from a common adapter, who does not, and what is reported and deleted of it, at a real server."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aivo.cloning.v1 import student_model_pb2
from aivo.cloning.v1 import student_model_service_pb2 as models_pb
from aivo.cloning.v1 import student_service_pb2 as student_pb
from structlog.testing import capture_logs

from cloning_server.running.lineage import cohort_of
from mesh.adapters.ref import is_student_id
from mesh.errors import AdapterIncompatible
from mesh.rpc.errors import error_from
from mesh.tutoring.profile import GRADES, Disability, LearningStyle, StudentProfile
from testing.scripted.trainer import FACTS, weights_for
from tests.cloning_server.conftest import STUDENT, Cloning, CloningStub, order, watch_all

# Of the profile that `order` has.
COHORT = "cohort-5-adhd-visual"


@pytest.fixture
async def stub(cloning: Cloning) -> AsyncIterator[CloningStub]:
    """A client of a server that has cohorts configured."""
    cloning.set(cohort_prefix="cohort")
    async with cloning.serve() as client:
        yield client


async def clone(stub: CloningStub, student_id: str = STUDENT, *, base_version: int = 0, grade: str = "5") -> None:
    request = order(student_id)
    if base_version:
        request.base_version = base_version
    request.student_profile.grade = grade
    clone_id = (await stub.StartClone(request)).clone_id
    assert (await watch_all(stub, clone_id))[-1].status == "completed"


async def models_of(stub: CloningStub, student_id: str) -> list[student_model_pb2.StudentModel]:
    return list((await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=student_id))).models)


async def test_a_new_student_starts_from_their_cohort_and_the_version_tells_it(
    cloning: Cloning, stub: CloningStub
) -> None:
    await clone(stub, COHORT)
    await clone(stub)
    of_cohort, of_student = cloning.trainer.plans
    assert of_student.previous is not None
    assert of_student.previous.weights == weights_for(of_cohort)
    assert (of_student.previous.warm, of_student.previous.to_beat) == (True, False)
    (model,) = await models_of(stub, STUDENT)
    (cohort,) = await models_of(stub, COHORT)
    assert model.starting_version == student_model_pb2.StartingVersion(
        student_id=COHORT, version=1, sha256=cohort.sha256
    )
    assert not cohort.HasField("starting_version")


async def test_students_of_another_profile_start_afresh(cloning: Cloning, stub: CloningStub) -> None:
    await clone(stub, COHORT)
    await clone(stub, grade="6")
    assert cloning.trainer.plans[-1].previous is None


async def test_a_student_with_a_version_is_measured_against_it_and_starts_afresh(
    cloning: Cloning, stub: CloningStub
) -> None:
    await clone(stub)
    await clone(stub, COHORT)
    await clone(stub)
    own, _, again = cloning.trainer.plans
    assert again.previous is not None
    assert again.previous.weights == weights_for(own)
    assert (again.previous.warm, again.previous.to_beat) == (False, True)


async def test_a_version_that_is_asked_for_comes_before_the_cohort(cloning: Cloning, stub: CloningStub) -> None:
    await clone(stub, COHORT)
    await clone(stub)
    await clone(stub, base_version=1)
    later, _ = await models_of(stub, STUDENT)
    assert (later.starting_version.student_id, later.starting_version.version) == (STUDENT, 1)
    asked_for = cloning.trainer.plans[-1].previous
    assert asked_for is not None
    assert asked_for.to_beat


async def test_a_few_more_answers_keep_what_the_students_own_version_says_of_teaching(
    cloning: Cloning, stub: CloningStub
) -> None:
    many = order(responses=24)
    many.student_profile.interests.append("cats")
    await watch_all(stub, (await stub.StartClone(many)).clone_id)
    await clone(stub, base_version=1)
    await clone(stub)
    afresh, continued, first = await models_of(stub, STUDENT)
    assert continued.policy == first.policy
    assert "not enough answers" in afresh.policy.guidance.sentence


async def test_a_student_who_starts_from_a_cohort_gets_none_of_its_policy(cloning: Cloning, stub: CloningStub) -> None:
    many = order(COHORT, responses=24)
    many.student_profile.interests.append("cats")
    await watch_all(stub, (await stub.StartClone(many)).clone_id)
    await clone(stub)
    (model,) = await models_of(stub, STUDENT)
    assert model.HasField("starting_version")
    assert list(model.policy.interests.interests) == []
    assert "not enough answers" in model.policy.guidance.sentence


async def test_a_cohort_is_made_anew_unless_its_own_version_is_asked_for(cloning: Cloning, stub: CloningStub) -> None:
    await clone(stub, COHORT)
    # One cohort's adapter, made from answers of students of another's profile.
    await clone(stub, "cohort-none-none-none")
    await clone(stub, COHORT, base_version=1)
    _, other, continued = cloning.trainer.plans
    assert other.previous is None
    assert continued.start is not None
    assert (continued.start.student_id, continued.start.version) == (COHORT, 1)


async def test_nobody_starts_from_a_cohort_unless_it_is_configured(cloning: Cloning) -> None:
    async with cloning.serve() as stub:
        await clone(stub, COHORT)
        await clone(stub)
    assert cloning.trainer.plans[-1].previous is None


async def test_a_cohort_that_does_not_fit_is_left_out_and_ends_no_clone(cloning: Cloning, stub: CloningStub) -> None:
    await clone(stub, COHORT)
    cloning.trainer.faults.append(AdapterIncompatible("its rank is another"))
    await clone(stub)
    _, started, afresh = cloning.trainer.plans
    assert (started.previous is None, afresh.previous is None) == (False, True)
    (model,) = await models_of(stub, STUDENT)
    assert not model.HasField("starting_version")


async def test_versions_of_another_main_brain_are_left_out_and_end_no_clone(
    cloning: Cloning, stub: CloningStub
) -> None:
    await clone(stub, COHORT)
    await clone(stub)
    cloning.trainer.facts = replace(FACTS, main_brain="f" * 64)
    with capture_logs() as logs:
        await clone(stub)
    assert cloning.trainer.plans[-1].previous is None
    left_out = [event for event in logs if event["event"] == "previous_version_left_out"]
    # The student's own version, then the cohort's.
    assert [event["reason"] for event in left_out] == ["ADAPTER_INCOMPATIBLE"] * 2
    assert (await models_of(stub, STUDENT))[0].active


async def test_a_version_of_another_main_brain_that_is_asked_for_fails_the_clone(
    cloning: Cloning, stub: CloningStub
) -> None:
    await clone(stub)
    cloning.trainer.facts = replace(FACTS, main_brain="f" * 64)
    request = order(STUDENT)
    request.base_version = 1
    last = (await watch_all(stub, (await stub.StartClone(request)).clone_id))[-1]
    assert last.status == "failed"
    error = error_from(last.error)
    assert isinstance(error, AdapterIncompatible)
    assert "clone the student again" in str(error)
    assert len(cloning.trainer.plans) == 1


async def test_deleting_a_student_leaves_the_cohort_and_deleting_the_cohort_leaves_its_students(
    cloning: Cloning, stub: CloningStub
) -> None:
    await clone(stub, COHORT)
    for student_id in ("zoe", "bo"):
        await clone(stub, student_id)
    await stub.DeleteStudent(student_pb.DeleteStudentRequest(student_id="zoe"))
    assert await models_of(stub, "zoe") == []
    assert len(await models_of(stub, COHORT)) == len(await models_of(stub, "bo")) == 1
    stored = await cloning.stored()
    assert [key for key, value in stored.items() if "zoe" in key or b"zoe" in value] == []
    receipt = await stub.DeleteStudent(student_pb.DeleteStudentRequest(student_id=COHORT))
    assert receipt.models.versions == 1
    assert len(await models_of(stub, "bo")) == 1
    await clone(stub, "zoe")
    assert cloning.trainer.plans[-1].previous is None


def test_every_profile_has_a_cohort_of_its_own_whose_id_is_valid() -> None:
    profiles = [
        StudentProfile(grade=grade, disability=disability, learning_style=style)
        for grade in (None, *GRADES)
        for disability in (None, *Disability)
        for style in (None, *LearningStyle)
    ]
    ids = {cohort_of(profile, prefix="x" * 24) for profile in profiles}
    assert len(ids) == len(profiles)
    assert all(map(is_student_id, ids))
