"""Roles on vLLM, scripted: how they are loaded, asked, kept in its memory, and left out if it does not take them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from brain_server.engine.contract import Generation, complete
from brain_server.engine.settings import EngineSettings
from brain_server.vllm_engine.engine import VllmEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import ModelNotLoaded
from mesh.lm.chat import encode_prompt
from mesh.main_brain.files import MainBrainFiles
from mesh.main_brain.roles import WEIGHTS_FILE, RoleName, find_role
from testing.adapters import publish
from testing.models.random_adapters import random_weights, recipe
from testing.models.random_roles import write_random_role
from testing.models.small_models import write_small_llama
from testing.parts.stores import S3Endpoint
from testing.scripted.vllm import ScriptedVllm, serving_vllm
from testing.waiting import until, until_ready
from tests.brain_server.vllm_engine.requests import greedy, prompt_of

LABELS = ["Correct", "Partially correct", "Incorrect"]
# Of one token each, which the base model of the script likes alike.
SHORT_LABELS = ["Yes", "No"]
ALIKE = dict.fromkeys(SHORT_LABELS, 0.5)
ROLES: tuple[RoleName, ...] = ("grader", "guard")
STUDENTS = tuple(f"student-{number}" for number in range(12))


@pytest.fixture(scope="module")
async def store(s3_endpoint: S3Endpoint, files: MainBrainFiles) -> AsyncIterator[AdapterStore]:
    """Twelve students with a model each."""
    async with S3Blobs(bucket="test-vllm-roles", endpoint_url=s3_endpoint.url, create_bucket=True) as blobs:
        adapters = AdapterStore(blobs)
        for seed, student_id in enumerate(STUDENTS):
            await publish(adapters, student_id, random_weights(seed), recipe=recipe(base_digest=files.digest))
        yield adapters


@pytest.fixture
def vllm(files: MainBrainFiles) -> Iterator[ScriptedVllm]:
    with serving_vllm(ScriptedVllm(base_model=files.name)) as vllm:
        yield vllm


@pytest.fixture
def roles_dir(files: MainBrainFiles, tmp_path: Path) -> Path:
    folder = tmp_path / "roles"
    for role in ROLES:
        write_random_role(folder, files.path, role=role, base_digest=files.digest)
    return folder


@asynccontextmanager
async def opened(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> AsyncIterator[VllmEngine]:
    settings = EngineSettings(
        engine="vllm", vllm_url=vllm.url, vllm_adapter_dir=roles_dir.parent / "adapters", roles_dir=roles_dir,
        model_cache_dir=files.path.parent,
    )  # fmt: skip
    async with VllmEngine.open(settings, store) as engine:
        await until_ready(engine)
        yield engine


def facts_of(engine: VllmEngine) -> tuple[str, set[RoleName], int]:
    """Returns what health says of the grader, the roles that run, and the number of problems."""
    main_brain = engine.facts.main_brain
    assert main_brain is not None
    return main_brain.grader, set(main_brain.roles), len(main_brain.problems)


def sha256_of(role: RoleName, files: MainBrainFiles, roles_dir: Path) -> str:
    trained_role = find_role([roles_dir], base_model=files.name, role=role, base_digest=files.digest).role
    assert trained_role is not None
    return trained_role.manifest.sha256


async def test_a_role_is_asked_by_its_name_for_the_first_tokens_of_the_labels(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files.path)
    first_tokens = {tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in LABELS}
    async with opened(vllm, store, files, roles_dir) as engine:
        assert facts_of(engine)[1:] == ({*ROLES}, 0)
        for role in ROLES:
            vllm.weighings.clear()
            weights = await engine.weigh(prompt_of(), LABELS, role=role)
            (weighing,) = vllm.weighings
            assert weighing.prompts == (tuple(encode_prompt(tokenizer, prompt_of())),)
            assert set(weighing.tokens) == first_tokens
            assert weighing.model.startswith(sha256_of(role, files, roles_dir))
            assert max(weights.values()) > 0.8
        assert engine.counts.role_prompts == {"grader": 1, "guard": 1}
        vllm.weighings.clear()
        assert await engine.weigh(prompt_of(), SHORT_LABELS) == pytest.approx(ALIKE)
        assert [weighing.model.partition("-")[0] for weighing in vllm.weighings] == ["base"]


async def test_roles_stay_in_vllms_memory_while_more_students_than_its_slots_come_and_go(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> None:
    vllm.slots = 8
    async with opened(vllm, store, files, roles_dir) as engine:
        for role in ROLES:
            await engine.weigh(prompt_of(), LABELS, role=role)
        vllm.reads.clear()
        for _ in range(2):
            for student_id in STUDENTS:
                reply = await complete(engine, greedy(student_id))
                assert reply.adapter is not None
                await asyncio.sleep(0.01)
        # The students displaced each other, and no role.
        assert len(vllm.reads) > len(STUDENTS)
        vllm.reads.clear()
        for role in ROLES:
            await engine.weigh(prompt_of(), LABELS, role=role)
        assert vllm.reads == []


async def test_a_role_alone_costs_vllm_nothing_but_its_own_requests(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> None:
    async with opened(vllm, store, files, roles_dir) as engine:
        vllm.weighings.clear()
        for _ in range(10):
            await engine.weigh(prompt_of(), LABELS, role="grader")
            await complete(engine, greedy(STUDENTS[0]))
            await complete(engine, Generation(prompt=prompt_of()))
        # The guard was not used, but too few others were for it to leave.
        assert len(vllm.weighings) == 10


async def test_a_role_of_a_higher_rank_than_vllms_is_left_out_and_grading_goes_on(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> None:
    vllm.max_rank = 2
    async with opened(vllm, store, files, roles_dir) as engine:
        assert facts_of(engine) == ("zero-shot", set(), 2)
        assert await engine.weigh(prompt_of(), SHORT_LABELS, role="grader") == pytest.approx(ALIKE)
        assert (await complete(engine, Generation(prompt=prompt_of()))).text


async def test_a_role_that_vllm_fails_with_is_left_out(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> None:
    write_random_role(roles_dir, files.path, role="grader", base_digest=files.digest, seed=1)
    vllm.failing_sha256 = sha256_of("grader", files, roles_dir)
    async with opened(vllm, store, files, roles_dir) as engine:
        assert facts_of(engine) == ("zero-shot", {"guard"}, 1)
        assert await engine.weigh(prompt_of(), LABELS, role="guard")


@pytest.fixture
def broken_roles_dir(files: MainBrainFiles, roles_dir: Path, tmp_path: Path) -> Path:
    """A folder with a grader of another model's widths, and a guard without weights."""
    other_model = write_small_llama(tmp_path / "other", AutoTokenizer.from_pretrained(files.path))
    write_random_role(roles_dir, other_model, role="grader", base_digest=files.digest)
    next(roles_dir.glob("*/guard")).joinpath(WEIGHTS_FILE).unlink()
    return roles_dir


async def test_a_role_of_another_model_or_without_its_weights_is_left_out(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, broken_roles_dir: Path
) -> None:
    async with opened(vllm, store, files, broken_roles_dir) as engine:
        assert facts_of(engine) == ("zero-shot", set(), 2)
        assert (await complete(engine, greedy(STUDENTS[0]))).adapter is not None


async def test_a_restarted_vllm_gets_the_role_again_or_goes_on_without_it(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> None:
    async with opened(vllm, store, files, roles_dir) as engine:
        weights = await engine.weigh(prompt_of(), LABELS, role="grader")
        vllm.restart()
        assert await engine.weigh(prompt_of(), LABELS, role="grader") == weights

        vllm.restart()
        vllm.max_rank = 2
        with pytest.raises(ModelNotLoaded, match="grader"):
            await engine.weigh(prompt_of(), LABELS, role="grader")
        assert facts_of(engine) == ("zero-shot", {"guard"}, 1)
        assert await engine.weigh(prompt_of(), LABELS, role="grader") != pytest.approx(weights, rel=0.05)
        await until_ready(engine)


async def test_a_restarted_brain_leaves_no_role_behind(
    vllm: ScriptedVllm, store: AdapterStore, files: MainBrainFiles, roles_dir: Path
) -> None:
    for _ in range(2):
        async with opened(vllm, store, files, roles_dir):

            async def has_blank_and_roles() -> bool:
                return len(vllm.adapters) == 1 + len(ROLES)

            await until(has_blank_and_roles, seconds=10)
