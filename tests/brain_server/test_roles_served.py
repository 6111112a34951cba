"""A brain with roles, sound and broken, through its real edge: it grades with what it has, and says what is missing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from google.protobuf.json_format import ParseDict
from prometheus_client import generate_latest

from brain_server.app import open_server
from brain_server.settings import BrainSettings
from mesh.lm.guarding import HarmCategory
from mesh.main_brain.files import fetch_main_brain
from mesh.main_brain.roles import WEIGHTS_FILE, TrainedRole, find_role
from mesh.tutoring.profile import GradeBand
from testing.models.random_roles import write_random_role
from testing.parts.stores import S3Endpoint
from testing.waiting import until

if TYPE_CHECKING:
    # The generated code has it for type checkers alone.
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub

ASSESSMENT = {
    "student_response": "Plants make food from sunlight",
    "criteria": {"subject": "Science", "grade": "5", "learning_objective": "Understand photosynthesis"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a brain answered: to an assessment and to a prompt, its health after both, and its metrics."""

    verdict: pb.AssessResponse
    reply: pb.GenerateResponse
    health: pb.GetHealthResponse
    metrics: str


@pytest.fixture
def settings(small_llama: Path, s3_endpoint: S3Endpoint, bucket: str, tmp_path: Path) -> BrainSettings:
    """A brain on a small model, which has a guard."""
    digest = fetch_main_brain(str(small_llama), small_llama.parent).digest
    write_random_role(tmp_path, small_llama, role="guard", base_digest=digest)
    return BrainSettings(
        base_model=str(small_llama), model_cache_dir=small_llama.parent, roles_dir=tmp_path, device="cpu",
        kv_cache_bytes=64 * 1024 * 1024, s3_endpoint_url=s3_endpoint.url, s3_bucket=bucket, brain_port=0,
        brain_metrics_port=0, drain_seconds=1, safety="off",
    )  # fmt: skip


@pytest.fixture
def grader(settings: BrainSettings) -> TrainedRole:
    folder = Path(settings.base_model)
    digest = fetch_main_brain(settings.base_model, folder.parent).digest
    assert settings.roles_dir is not None
    return write_random_role(settings.roles_dir, folder, role="grader", base_digest=digest)


@pytest.fixture
def guard(settings: BrainSettings) -> TrainedRole:
    """The guard of the settings, with thresholds that no text reaches: its weights are random."""
    assert settings.roles_dir is not None
    digest = fetch_main_brain(settings.base_model, Path(settings.base_model).parent).digest
    role = find_role((settings.roles_dir,), base_model=settings.base_model, role="guard", base_digest=digest).role
    assert role is not None
    manifest_path = role.folder / "manifest.json"
    document = json.loads(manifest_path.read_text())
    document["thresholds"] = {category: dict.fromkeys(GradeBand, 1.0) for category in HarmCategory}
    manifest_path.write_text(json.dumps(document))
    return role


async def answers_of(settings: BrainSettings) -> Answers:
    async with open_server(settings) as server:
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub: BrainServiceAsyncStub = BrainServiceStub(channel)

            async def is_loaded() -> bool:
                return (await stub.GetHealth(pb.GetHealthRequest())).model_loaded

            await until(is_loaded, seconds=60)
            return Answers(
                verdict=await stub.Assess(ParseDict(ASSESSMENT, pb.AssessRequest())),
                reply=await stub.Generate(pb.GenerateRequest(prompt="What is rain?", max_tokens=2)),
                health=await stub.GetHealth(pb.GetHealthRequest()),
                metrics=generate_latest(server.registry).decode(),
            )


async def test_a_brain_with_a_grader_grades_with_it_and_names_it(settings: BrainSettings, grader: TrainedRole) -> None:
    answers = await answers_of(settings)
    assert answers.verdict.grader == answers.health.main_brain.grader == grader.identity
    assert 0 <= answers.verdict.correctness <= 100
    assert (answers.health.status, list(answers.health.main_brain.problems)) == ("healthy", [])
    assert 'aivo_engine_role_prompts_total{role="grader"} 1.0' in answers.metrics


async def test_a_brain_with_a_broken_grader_grades_without_it_and_says_so(
    settings: BrainSettings, grader: TrainedRole
) -> None:
    (grader.folder / WEIGHTS_FILE).write_bytes(b"no weights")
    answers = await answers_of(settings)
    assert answers.verdict.grader == answers.health.main_brain.grader == "zero-shot"
    assert answers.reply.usage.completion_tokens > 0
    assert answers.health.status == "degraded"
    assert ["grader" in problem for problem in answers.health.main_brain.problems] == [True]
    assert 'aivo_engine_role_prompts_total{role="guard"} 0.0' in answers.metrics
    assert 'role="grader"' not in answers.metrics


async def test_a_grader_calibrated_for_other_features_is_left_out_and_health_says_so(
    settings: BrainSettings, grader: TrainedRole
) -> None:
    manifest_path = grader.folder / "manifest.json"
    document = json.loads(manifest_path.read_text())
    document["calibration"]["slopes"] = [[0.1]] * len(document["labels"])
    manifest_path.write_text(json.dumps(document))
    answers = await answers_of(settings)
    assert answers.verdict.grader == "zero-shot"
    assert answers.health.status == "degraded"
    assert ["calibration" in problem for problem in answers.health.main_brain.problems] == [True]


async def test_a_brain_with_a_guard_screens_with_it_and_names_it(settings: BrainSettings, guard: TrainedRole) -> None:
    answers = await answers_of(settings.model_copy(update={"safety": "enforce"}))
    assert answers.reply.safety.guard == answers.verdict.safety.guard == guard.identity
    assert answers.health.main_brain.guard == guard.identity
    assert (answers.health.status, answers.health.safety) == ("healthy", "enforce")
    assert answers.reply.usage.completion_tokens > 0
    # The prompt and the reply, the answer and the feedback.
    assert 'aivo_engine_role_prompts_total{role="guard"} 4.0' in answers.metrics


async def test_a_brain_with_a_broken_guard_screens_by_rules_and_says_so(
    settings: BrainSettings, guard: TrainedRole
) -> None:
    (guard.folder / WEIGHTS_FILE).write_bytes(b"no weights")
    answers = await answers_of(settings.model_copy(update={"safety": "enforce"}))
    assert answers.reply.safety.guard == answers.verdict.safety.guard == answers.health.main_brain.guard == "rules"
    assert answers.health.status == "degraded"
    assert ["guard" in problem for problem in answers.health.main_brain.problems] == [True]
