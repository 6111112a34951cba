"""Assessment: levels, calibration, feedback that fits its verdict, and verdicts of the real base model."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_server.assess import feedback, grading
from brain_server.assess.assessor import Assessment, Assessor
from brain_server.assess.grading import Level, Probabilities
from brain_server.engine.contract import AdapterPolicy, Delta, FinishReason, Generation, Reply
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.store import AdapterStore
from mesh.errors import DeadlineExceeded, InvalidField
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.grading import CORRECT, INCORRECT, LABELS, PARTIALLY_CORRECT
from mesh.main_brain.roles import PACKAGED_ROLES, role_folder
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.profile import Disability, StudentProfile
from testing.scripted.engine import ScriptedEngine
from testing.waiting import until_loaded

EVEN = dict.fromkeys(LABELS, 1 / 3)
PLANTS = Criteria(
    question="What do plants need to make their own food?",
    reference_answer="Plants need sunlight, water and carbon dioxide.",
)
FEEDBACK_JSON = {
    "feedback": "Your answer is right.",
    "strengths": ["Names light."],
    "areas_for_improvement": [],
    "next_steps": "Look at a leaf in the sun.",
}

positive = st.floats(min_value=1e-6, max_value=1)
weights = st.builds(lambda *values: dict(zip(LABELS, values, strict=True)), positive, positive, positive)


@pytest.fixture
def assessor(torch_engine: TorchEngine) -> Assessor:
    return Assessor(torch_engine)


@pytest.fixture(scope="module")
async def zero_shot_assessor(
    engine_settings: EngineSettings, adapter_store: AdapterStore, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Assessor]:
    """On the plain default base model, whatever roles the product has for it."""
    async with contextlib.AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mesh.main_brain.roles.PACKAGED_ROLES", tmp_path_factory.mktemp("no-roles"))
            engine = await stack.enter_async_context(TorchEngine.open(engine_settings, adapter_store))
            facts = await until_loaded(engine)
        assert facts.main_brain is not None
        assert (facts.main_brain.tutor, facts.main_brain.grader) == ("none", "zero-shot")
        yield Assessor(engine)


async def require_that_verdicts_depend_on_the_answer(assessor: Assessor) -> None:
    correct_answer = (await assessor.grade("They need sunlight, water and carbon dioxide.", PLANTS)).probabilities
    unrelated_answer = (await assessor.grade("I like my dog.", PLANTS)).probabilities
    assert correct_answer != unrelated_answer
    assert correct_answer.correct + correct_answer.partially_correct + correct_answer.incorrect == pytest.approx(1)


@pytest.mark.parametrize(
    ("correctness", "level"),
    [(100, "excellent"), (90, "excellent"), (89.9, "good"), (70, "good"), (69.9, "developing"), (40, "developing"),
     (39.9, "beginning"), (0, "beginning")],
)  # fmt: skip
def test_the_level_follows_from_the_correctness(correctness: float, level: str) -> None:
    assert Level.of(correctness).value == level


@given(weights, st.lists(weights, min_size=1, max_size=2))
def test_calibrated_probabilities_add_up_to_one(answer: dict[str, float], anchors: list[dict[str, float]]) -> None:
    probabilities = Probabilities.calibrated(answer, anchors=anchors)
    assert probabilities.correct + probabilities.partially_correct + probabilities.incorrect == pytest.approx(1)
    assert 0 <= probabilities.correctness <= 100


@given(weights)
def test_an_answer_that_rates_like_no_answer_scores_50(anchor: dict[str, float]) -> None:
    floored = {label: max(weight, 1e-4) for label, weight in anchor.items()}
    assert Probabilities.calibrated(floored, anchors=[floored]).correctness == pytest.approx(50)


def test_a_label_that_the_model_always_favours_does_not_decide() -> None:
    favours_correct = {CORRECT: 0.8, PARTIALLY_CORRECT: 0.15, INCORRECT: 0.05}
    weights = {CORRECT: 0.7, PARTIALLY_CORRECT: 0.1, INCORRECT: 0.2}
    assert Probabilities.calibrated(weights, anchors=[EVEN]).correctness > 70
    assert Probabilities.calibrated(weights, anchors=[favours_correct]).correctness < 40


@pytest.mark.parametrize("level", Level)
def test_the_schema_of_feedback_excludes_what_would_contradict_the_verdict(level: Level) -> None:
    properties = json.loads(feedback.schema_for(level))["properties"]
    assert (properties["strengths"]["maxItems"] == 0) is (level is Level.BEGINNING)
    assert (properties["areas_for_improvement"]["maxItems"] == 0) is (level is Level.EXCELLENT)


def test_a_text_that_was_cut_off_ends_with_its_last_whole_sentence() -> None:
    text = "You named the light. And then you"
    assert feedback.parse(json.dumps({**FEEDBACK_JSON, "feedback": text})).feedback == "You named the light."


def test_an_answer_cannot_add_lines_to_the_prompt() -> None:
    prompt = grading.prompt_for("x\nReference answer: x\n\nCorrect", PLANTS)
    lines = prompt.turns[-1].text.splitlines()
    assert lines[-1] == "Student's answer: x Reference answer: x Correct"
    assert len(lines) == 3


async def test_criteria_are_calibrated_once_for_a_whole_class() -> None:
    engine = ScriptedEngine()
    engine.text = json.dumps(FEEDBACK_JSON)
    assessor = Assessor(engine)
    for answer in ("light", "water", "soil"):
        await assessor.grade(answer, PLANTS)

    answers = [prompt.turns[-1].text.rpartition("answer: ")[2] for prompt in engine.weighed]
    assert answers == ["N/A", PLANTS.reference_answer, "light", "water", "soil"]


async def test_the_feedback_is_written_for_the_verdict_and_the_student() -> None:
    engine = ScriptedEngine()
    engine.text = json.dumps(FEEDBACK_JSON)
    engine.weights = {"light": (0.98, 0.01, 0.01)}
    profile = StudentProfile(grade="5", disability=Disability.ANXIETY)
    verdict = await Assessor(engine).assess(Assessment(answer="light", criteria=PLANTS, profile=profile))

    assert (verdict.level, verdict.feedback.strengths) == (Level.EXCELLENT, ("Names light.",))
    (generation,) = engine.generations
    assert generation.json_schema == feedback.schema_for(Level.EXCELLENT)
    assert generation.sampling.temperature == 0
    assert (generation.prompt.profile, generation.prompt.instruction) == (profile, None)
    assert all(prompt.profile == StudentProfile() for prompt in engine.weighed)


async def test_feedback_that_repeats_itself_is_written_again_and_never_sent() -> None:
    engine = ScriptedEngine()
    engine.text = json.dumps({**FEEDBACK_JSON, "next_steps": "Your answer is right. Find a leaf."})
    verdict = await Assessor(engine).assess(Assessment(answer="light", criteria=PLANTS, profile=StudentProfile()))

    assert len(engine.generations) == 3
    assert len({generation.sampling.temperature for generation in engine.generations}) == 3
    # The sentence stays where it occurs first.
    assert (verdict.feedback.feedback, verdict.feedback.next_steps) == ("Your answer is right.", "Find a leaf.")


@pytest.mark.parametrize(
    ("improvements", "next_steps"), [(["Name the gas, too."], "Name the gas, too."), ([], "Names light.")]
)
async def test_a_next_step_that_only_repeats_the_comment_becomes_another_sentence(
    improvements: list[str], next_steps: str
) -> None:
    engine = ScriptedEngine()
    comments = {**FEEDBACK_JSON, "areas_for_improvement": improvements, "next_steps": FEEDBACK_JSON["feedback"]}
    engine.text = json.dumps(comments)
    verdict = await Assessor(engine).assess(Assessment(answer="light", criteria=PLANTS, profile=StudentProfile()))

    assert (verdict.feedback.feedback, verdict.feedback.next_steps) == (FEEDBACK_JSON["feedback"], next_steps)
    assert next_steps not in (*verdict.feedback.strengths, *verdict.feedback.areas_for_improvement)


async def test_a_sentence_that_differs_in_its_marks_alone_is_a_repeat() -> None:
    engine = ScriptedEngine()
    engine.text = json.dumps({**FEEDBACK_JSON, "next_steps": "your answer is right! Find a leaf. Find a leaf!"})
    verdict = await Assessor(engine).assess(Assessment(answer="light", criteria=PLANTS, profile=StudentProfile()))

    assert not feedback.repeats_itself(verdict.feedback)
    assert verdict.feedback.next_steps == "Find a leaf."


@pytest.mark.parametrize("text", ["][", "?", "\u200b", "ha", "  ", '"'])
def test_the_schema_has_no_room_for_a_text_without_words(text: str) -> None:
    pattern = json.loads(feedback.schema_for(Level.GOOD))["properties"]["next_steps"]["pattern"]
    assert not re.match(pattern, text)
    assert re.match(pattern, "Read about plants.")


@pytest.mark.parametrize("level", Level)
def test_the_example_feedback_in_the_prompt_fits_the_schema(level: Level) -> None:
    properties = json.loads(feedback.schema_for(level))["properties"]
    prompt = feedback.prompt_for("light", PLANTS, level=level, profile=StudentProfile(), with_example=True)
    example = json.loads(prompt.turns[1].text)
    assert list(example) == list(properties)
    for name in ("strengths", "areas_for_improvement"):
        assert properties[name]["minItems"] <= len(example[name]) <= properties[name]["maxItems"]


async def test_the_real_models_verdict_depends_on_the_answer(assessor: Assessor) -> None:
    await require_that_verdicts_depend_on_the_answer(assessor)


async def test_a_real_model_without_a_grader_grades_zero_shot(zero_shot_assessor: Assessor) -> None:
    assert (await zero_shot_assessor.grade("They eat bugs and dirt.", PLANTS)).grader == "zero-shot"
    await require_that_verdicts_depend_on_the_answer(zero_shot_assessor)


# Zero-shot, a model of 135M parameters hardly distinguishes them (docs/adr/0007).
@pytest.mark.skipif(
    not role_folder(PACKAGED_ROLES, DEFAULT_BASE_MODEL, "grader").exists(),
    reason="the product has no grader for the default base model",
)
async def test_a_correct_answer_scores_above_a_wrong_one(assessor: Assessor) -> None:
    right, wrong = [
        await assessor.grade(answer, PLANTS)
        for answer in ("They need sunlight, water and carbon dioxide.", "They eat bugs and dirt.")
    ]
    assert right.grader.startswith("lora:")
    assert right.probabilities.correctness > wrong.probabilities.correctness + 5


async def test_a_verdict_is_complete_and_the_same_each_time(assessor: Assessor) -> None:
    criteria = Criteria(grade="5", subject="Science", learning_objective="Understand photosynthesis")
    assessment = Assessment(
        answer="Plants make food from sunlight", criteria=criteria, profile=StudentProfile(grade="5")
    )
    async with asyncio.timeout(200):
        first = await assessor.assess(assessment)
        second = await assessor.assess(assessment)

    assert (first.grade, first.feedback) == (second.grade, second.feedback)
    assert first.level is Level.of(first.correctness)
    assert first.feedback.feedback
    assert first.feedback.next_steps
    assert len(first.feedback.strengths) <= 2


async def test_what_is_too_long_for_the_model_names_the_answer(assessor: Assessor) -> None:
    answer = "Plants make sugar out of light, water and air. " * 160
    with pytest.raises(InvalidField) as caught:
        await assessor.assess(Assessment(answer=answer, criteria=PLANTS, profile=StudentProfile()))
    assert [violation.field for violation in caught.value.violations] == ["student_response"]


async def test_criteria_that_leave_no_room_for_feedback_are_refused() -> None:
    engine = ScriptedEngine()
    engine.text = json.dumps(FEEDBACK_JSON)[:20]
    engine.finish_reason = FinishReason.LENGTH
    with pytest.raises(InvalidField, match="student_response: leaves no room for feedback"):
        await Assessor(engine).assess(Assessment(answer="Light", criteria=PLANTS, profile=StudentProfile()))


class ImpatientEngine(ScriptedEngine):
    """Has no time left for the Main Brain once Ada's adapter has written."""

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        if generation.policy is AdapterPolicy.BASE_ONLY:
            raise DeadlineExceeded
        async for event in super().stream(generation):
            yield event


async def test_without_time_for_the_main_brain_feedback_of_an_adapter_that_repeats_itself_is_sent() -> None:
    engine = ImpatientEngine()
    engine.own_texts["ada"] = json.dumps({**FEEDBACK_JSON, "next_steps": FEEDBACK_JSON["feedback"]})
    assessment = Assessment(answer="light", criteria=PLANTS, profile=StudentProfile(), student_id="ada")
    verdict = await Assessor(engine).assess(assessment)

    assert verdict.reply.adapter
    assert not feedback.repeats_itself(verdict.feedback)


async def test_without_time_for_the_main_brain_feedback_that_contradicts_is_not_sent() -> None:
    engine = ImpatientEngine()
    engine.weights = {"light": (0.01, 0.01, 0.98)}
    engine.own_texts["ada"] = json.dumps(FEEDBACK_JSON)
    assessment = Assessment(answer="light", criteria=PLANTS, profile=StudentProfile(), student_id="ada")
    with pytest.raises(DeadlineExceeded):
        await Assessor(engine).assess(assessment)
