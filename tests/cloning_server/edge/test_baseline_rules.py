"""Which baselines StartClone refuses although each of their fields is right, through a real server."""

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb

from mesh.errors import InvalidField
from tests.cloning_server.conftest import CloningStub, order, raised


def scored(*scores: float, max_score: float | None = None, request_id: str = "") -> pb.StartCloneRequest:
    """A request for a clone whose first responses have these scores."""
    request = order(request_id=request_id)
    for response, score in zip(request.baseline_data.responses, scores, strict=False):
        response.score = score
    if max_score is not None:
        request.baseline_data.max_score = max_score
    return request


async def violations_of(stub: CloningStub, request: pb.StartCloneRequest) -> dict[str, str]:
    """Starts a clone that is refused; returns descriptions by field."""
    with raised() as failure:
        await stub.StartClone(request)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(failure.error, InvalidField)
    return {violation.field: violation.description for violation in failure.error.violations}


@pytest.mark.parametrize(
    "request_",
    [
        scored(0, 50, 100),
        scored(1, 0, 1, 1, max_score=1),
        scored(0, 0, 1, 1, max_score=100),
        scored(20, 7.5, max_score=20),
        scored(150, max_score=200),
        # Neither a point nor a share: above 1, nobody scores out of 1.
        scored(0, 1, 2),
        scored(),
    ],
)
async def test_scores_up_to_the_best_score_are_accepted(stub: CloningStub, request_: pb.StartCloneRequest) -> None:
    assert (await stub.StartClone(request_)).clone_id


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (scored(50, 100.1, 99, 101), "100, unless baseline_data.max_score"),
        (scored(50, float("inf"), 99, 101), "100, unless baseline_data.max_score"),
        (scored(20, 20.5, 0, 21, max_score=20), "20, which is baseline_data.max_score"),
        (scored(0.5, 0.51, 0, 1, max_score=0.5), "0.5, which is baseline_data.max_score"),
        (scored(0, 2_000_001, 5, 1e9, max_score=2_000_000), "2000000, which is baseline_data.max_score"),
    ],
)
async def test_every_score_above_the_best_score_is_refused_by_its_field(
    stub: CloningStub, request_: pb.StartCloneRequest, limit: str
) -> None:
    violations = await violations_of(stub, request_)
    assert list(violations) == [f"baseline_data.responses[{index}].score" for index in (1, 3)]
    assert all(limit in description for description in violations.values())


@pytest.mark.parametrize("request_", [scored(0, 1, 1, 0), scored(0), scored(0.5, 1)])
async def test_scores_that_may_be_points_or_percent_are_refused_unless_the_best_score_is_told(
    stub: CloningStub, request_: pb.StartCloneRequest
) -> None:
    violations = await violations_of(stub, request_)
    assert list(violations) == ["baseline_data.max_score"]
    assert "set it to the best score that an answer can get" in violations["baseline_data.max_score"]
    request_.baseline_data.max_score = 1
    assert (await stub.StartClone(request_)).clone_id


async def test_scores_that_decide_nothing_need_no_best_score(stub: CloningStub) -> None:
    request = scored(0, 1)
    for response in request.baseline_data.responses[:2]:
        response.is_correct = response.score == 1
    assert (await stub.StartClone(request)).clone_id


async def test_one_score_that_decides_makes_the_best_score_needed(stub: CloningStub) -> None:
    request = scored(0, 1)
    request.baseline_data.responses[0].is_correct = False
    assert list(await violations_of(stub, request)) == ["baseline_data.max_score"]


async def test_the_same_question_again_and_again_is_refused_at_once_and_counted(stub: CloningStub) -> None:
    request = order()
    for response, question in zip(request.baseline_data.responses, ("Why?", "why?", " WHY? \n", "Why?"), strict=True):
        response.question = question
    violations = await violations_of(stub, request)
    assert list(violations) == ["baseline_data.responses"]
    assert "at least 2 different questions" in violations["baseline_data.responses"]
    assert "these answer 1 " in violations["baseline_data.responses"]
    request.baseline_data.responses[3].question = "Why not?"
    assert (await stub.StartClone(request)).clone_id


async def test_questions_that_look_the_same_are_one(stub: CloningStub) -> None:
    request = order()
    looks = (
        "Qué es un volcán?",
        "Que\u0301 es un volca\u0301n?",
        "Qué es\u200b un volcán?",
        "\ufeffQUÉ ES UN VOLC\u00adÁN?",
    )
    for response, question in zip(request.baseline_data.responses, looks, strict=True):
        response.question = question
    assert list(await violations_of(stub, request)) == ["baseline_data.responses"]


async def test_everything_wrong_with_a_baseline_is_told_at_once(stub: CloningStub) -> None:
    request = scored(200)
    for response in request.baseline_data.responses:
        response.question = "Why?"
    assert list(await violations_of(stub, request)) == ["baseline_data.responses[0].score", "baseline_data.responses"]


async def test_a_refused_baseline_does_not_use_up_its_request_id(stub: CloningStub) -> None:
    assert await violations_of(stub, scored(0, 1, request_id="enrol-17"))
    corrected = scored(0, 1, max_score=1, request_id="enrol-17")
    first = await stub.StartClone(corrected)
    assert await stub.StartClone(corrected) == first


@pytest.mark.parametrize("interest", ["porn", "SHIT", "\uff46\uff55\uff43\uff4b", "rock bitches"])
async def test_an_interest_with_bad_language_is_refused_and_not_repeated(stub: CloningStub, interest: str) -> None:
    request = order()
    request.student_profile.interests[:] = ["soccer", interest]
    assert await violations_of(stub, request) == {"student_profile.interests": "must hold no bad language"}


async def test_interests_of_a_child_are_accepted(stub: CloningStub) -> None:
    request = order()
    request.student_profile.interests[:] = ["Maine Coons", "great tits", "Dickens", "cocker spaniels", "fútbol"]
    assert (await stub.StartClone(request)).clone_id
