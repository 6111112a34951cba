"""`Assess` over gRPC: who judges, who writes the feedback, and what the response says of both."""

import json

import pytest
from aivo.brain.v1 import brain_service_pb2 as pb

from brain_server.engine.contract import AdapterPolicy, Fallback
from mesh.errors import AdapterCorrupt, AdapterIncompatible
from testing.scripted.engine import SHA256
from tests.brain_server.edge.conftest import Served

FEEDBACK = {
    "feedback": "Good work.",
    "strengths": [],
    "areas_for_improvement": ["Name light."],
    "next_steps": "Read on.",
}


async def assess(served: Served, *, student_id: str) -> pb.AssessResponse:
    """Has one fixed answer of a student assessed."""
    request = pb.AssessRequest(
        student_response="Plants make food",
        criteria=pb.AssessmentCriteria(question="How do plants eat?"),
        context=pb.StudentContext(student_id=student_id),
    )
    return await served.brain.Assess(request, timeout=30)


def assert_written_by_main_brain(response: pb.AssessResponse, reason: str) -> None:
    assert not response.HasField("adapter")
    assert pb.FallbackReason.Name(response.fallback) == reason


async def test_assess_names_the_grader_and_the_students_adapter_that_wrote_the_feedback(served: Served) -> None:
    served.engine.text = json.dumps(FEEDBACK)
    served.engine.own_texts["ada"] = json.dumps({**FEEDBACK, "feedback": "Hello, Ada."})
    response = await assess(served, student_id="ada")

    assert response.feedback == "Hello, Ada."
    assert (response.adapter.student_id, response.adapter.version, response.adapter.sha256) == ("ada", 1, SHA256)
    assert not response.HasField("fallback")
    assert response.grader == "zero-shot"
    assert response.tokens_used == 43
    assert [reply.adapter is not None for reply in served.observed] == [True]
    assert response.correctness == pytest.approx(50)
    assert response.understanding_level == "developing"
    assert list(response.areas_for_improvement) == ["Name light."]
    likely = response.probabilities
    assert likely.correct + likely.partially_correct + likely.incorrect == pytest.approx(1)


@pytest.mark.parametrize("reason", [Fallback.NO_STUDENT_MODEL, Fallback.ADAPTER_STORE_UNAVAILABLE, Fallback.OUTDATED])
async def test_feedback_for_a_student_without_a_usable_adapter_is_the_main_brains(
    served: Served, reason: Fallback
) -> None:
    served.engine.text = json.dumps(FEEDBACK)
    served.engine.without_adapter["ada"] = reason
    response = await assess(served, student_id="ada")

    assert response.feedback == FEEDBACK["feedback"]
    assert_written_by_main_brain(response, f"FALLBACK_REASON_{reason.name}")
    assert len(served.engine.generations) == 1


async def test_feedback_for_nobody_in_particular_is_the_main_brains(served: Served) -> None:
    served.engine.text = json.dumps(FEEDBACK)
    assert_written_by_main_brain(await assess(served, student_id=""), "FALLBACK_REASON_NO_STUDENT")


@pytest.mark.parametrize("error", [AdapterCorrupt("the weights are broken"), AdapterIncompatible("the rank is 64")])
async def test_a_broken_adapter_withholds_no_verdict(served: Served, error: Exception) -> None:
    served.engine.text = json.dumps(FEEDBACK)
    served.engine.adapter_error = error
    response = await assess(served, student_id="ada")

    assert_written_by_main_brain(response, "FALLBACK_REASON_ADAPTER_BROKEN")
    assert response.correctness == pytest.approx(50)


async def test_the_same_answer_gets_the_same_verdict_whatever_the_students_adapters_are(served: Served) -> None:
    served.engine.text = json.dumps(FEEDBACK)
    served.engine.own_texts = {
        "ada": json.dumps({**FEEDBACK, "feedback": "Hello, Ada."}),
        "max": json.dumps({**FEEDBACK, "feedback": "Perfect, Max, full marks."}),
    }
    served.engine.weights = {"Plants make food": (0.1, 0.1, 0.8)}
    served.engine.without_adapter["eve"] = Fallback.NO_STUDENT_MODEL
    responses = [await assess(served, student_id=student) for student in ("ada", "max", "eve", "")]

    assert len({response.feedback for response in responses}) == 2
    verdicts = [(reply.correctness, reply.understanding_level, reply.grader) for reply in responses]
    assert verdicts == verdicts[:1] * 4
    assert [reply.probabilities for reply in responses] == [responses[0].probabilities] * 4


@pytest.mark.parametrize(
    ("weights", "contrary", "fitting"),
    [
        ((0.98, 0.01, 0.01), "No, that is wrong.", "Yes, that is right."),
        ((0.01, 0.01, 0.98), "Yes, that is right.", "No, that is not right."),
    ],
)
async def test_an_adapter_that_contradicts_the_verdict_does_not_write(
    served: Served, weights: tuple[float, ...], contrary: str, fitting: str
) -> None:
    served.engine.weights = {"Plants make food": weights}
    served.engine.text = json.dumps({**FEEDBACK, "feedback": fitting})
    served.engine.own_texts["ada"] = json.dumps({**FEEDBACK, "feedback": contrary})
    response = await assess(served, student_id="ada")

    assert response.feedback == fitting
    assert_written_by_main_brain(response, "FALLBACK_REASON_FEEDBACK_REJECTED")
    assert [reply.adapter for reply in served.observed] == [None]
    assert len(served.engine.generations) == 2


async def test_an_adapter_that_states_no_verdict_contradicts_none(served: Served) -> None:
    served.engine.weights = {"Plants make food": (0.98, 0.01, 0.01)}
    served.engine.own_texts["ada"] = json.dumps({**FEEDBACK, "feedback": "Plants use light, Ada."})
    assert (await assess(served, student_id="ada")).feedback == "Plants use light, Ada."


async def test_an_adapter_that_repeats_itself_at_every_temperature_does_not_write(served: Served) -> None:
    served.engine.text = json.dumps(FEEDBACK)
    served.engine.own_texts["ada"] = json.dumps({**FEEDBACK, "next_steps": FEEDBACK["feedback"]})
    response = await assess(served, student_id="ada")

    assert response.next_steps == FEEDBACK["next_steps"]
    assert_written_by_main_brain(response, "FALLBACK_REASON_FEEDBACK_REJECTED")
    assert [generation.policy for generation in served.engine.generations] == [
        *[AdapterPolicy.PREFER] * 3, AdapterPolicy.BASE_ONLY
    ]  # fmt: skip
