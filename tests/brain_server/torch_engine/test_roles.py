"""Roles in the engine: what they weigh, beside whom, and that a broken one stops nothing. Real base model, fp32."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from structlog.testing import capture_logs
from torch import Tensor

from brain_server.engine.contract import Delta, Tier, complete
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine import batch
from brain_server.torch_engine.compute.model import TorchModel
from brain_server.torch_engine.compute.role_tables import RoleUpdates
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.step import BatchStep
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.store import AdapterStore
from mesh.errors import ModelNotLoaded, QueueFull
from mesh.lm.chat import Prompt, encode_prompt
from mesh.lm.guarding import GUARD_LABELS
from mesh.lm.lora import to_safetensors
from mesh.main_brain.base import BaseModel
from mesh.main_brain.files import MainBrainFiles
from mesh.main_brain.roles import RoleName, TrainedRole, write_role
from testing.models.random_roles import random_role_state, role_manifest, write_random_role
from testing.waiting import until, until_loaded
from tests.brain_server.torch_engine.requests import greedy, prompt_of

LABELS = ["Correct", "Partially correct", "Incorrect"]
ROLES: tuple[RoleName, ...] = ("grader", "guard")


@pytest.fixture(scope="module")
def roles(files: MainBrainFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[RoleName, TrainedRole]:
    """A grader and a guard with random weights on all linear modules."""
    folder = tmp_path_factory.mktemp("roles")
    return {
        role: write_random_role(folder, files.path, role=role, base_digest=files.digest, seed=seed)
        for seed, role in enumerate(ROLES)
    }


@pytest.fixture(scope="module")
async def role_engine(
    engine_settings: EngineSettings, adapter_store: AdapterStore, roles: dict[RoleName, TrainedRole]
) -> AsyncIterator[TorchEngine]:
    settings = engine_settings.model_copy(update={"roles_dir": roles["grader"].folder.parents[1], "queue_limit": 16})
    async with TorchEngine.open(settings, adapter_store) as engine:
        await until_loaded(engine)
        yield engine


def weights_by_peft(reference: BaseModel, role: TrainedRole, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
    """How likely the first token of each label is, relative to the others, by plain transformers and PEFT."""
    tokenizer = reference.tokenizer
    peft = PeftModel.from_pretrained(reference.model, role.folder)
    try:
        with torch.inference_mode():
            logits_V = peft(torch.tensor([encode_prompt(tokenizer, prompt)])).logits[0, -1]
    finally:
        peft.unload()
    first_tokens = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in labels]
    return dict(zip(labels, logits_V[first_tokens].softmax(-1).tolist(), strict=True))


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[BatchStep]:
    """Returns the steps that a model computes tokens in from now on."""
    steps: list[BatchStep] = []
    run = TorchModel.run

    def run_and_note(model: TorchModel, step: BatchStep) -> Sequence[object]:
        steps.extend([step] if step.rows else [])
        return run(model, step)

    monkeypatch.setattr(TorchModel, "run", run_and_note)
    return steps


def add_nan(updates: RoleUpdates, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
    """What a role adds whose numbers overflow."""
    assert (updates, layer >= 0, group, len(x_NI)) == (updates, True, group, len(out_NO))
    out_NO.fill_(torch.nan)


async def test_a_role_weighs_the_first_tokens_of_the_labels_as_peft_does(
    role_engine: TorchEngine, reference: BaseModel, roles: dict[RoleName, TrainedRole]
) -> None:
    prompt = prompt_of("Is the sky blue? The student says: yes.")
    weights = {role: await role_engine.weigh(prompt, LABELS, role=role) for role in ROLES}
    for role in ROLES:
        assert weights[role] == pytest.approx(weights_by_peft(reference, roles[role], prompt, LABELS), rel=1e-3)
    zero_shot = await role_engine.weigh(prompt, LABELS)
    assert weights["grader"] != pytest.approx(zero_shot, rel=0.05)
    assert weights["grader"] != pytest.approx(weights["guard"], rel=0.05)
    assert role_engine.counts.role_prompts.keys() == {*ROLES}


async def test_a_verdict_is_one_step_that_reads_the_prompt(
    engine_settings: EngineSettings,
    adapter_store: AdapterStore,
    roles: dict[RoleName, TrainedRole],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = {"roles_dir": roles["grader"].folder.parents[1], "prefill_tokens": 4096}
    async with TorchEngine.open(engine_settings.model_copy(update=update), adapter_store) as engine:
        await until_loaded(engine)
        steps = count_steps(monkeypatch)
        await engine.weigh(prompt_of(), LABELS, role="grader")
        assert [(len(step.lane), [row.role for row in step.prefill]) for step in steps] == [(0, ["grader"])]
        steps.clear()
        await engine.weigh(prompt_of(), LABELS)
        # Without a role, the labels are read token by token.
        assert len(steps) > 1
        assert not any(row.role for step in steps for row in step.rows)


async def test_labels_that_begin_alike_are_read_to_their_end(role_engine: TorchEngine) -> None:
    labels = ["not correct at all", "not correct in part"]
    weights = await role_engine.weigh(prompt_of(), labels, role="grader")
    assert weights[labels[0]] != pytest.approx(weights[labels[1]], rel=1e-3)


async def test_students_and_roles_at_once_are_as_each_alone_and_slots_stay_as_they_are(
    role_engine: TorchEngine, students: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt_of(f"{text} " * 40) for text in ("The sky is blue.", "Two and two are five.")]
    callers = [*students, None]
    replies_alone = {student: await complete(role_engine, greedy(student)) for student in callers}
    weights_alone = [
        await role_engine.weigh(prompt, LABELS, role=role) for prompt in prompts for role in (*ROLES, None)
    ]
    counts_before = replace(role_engine.counts.slot)
    steps = count_steps(monkeypatch)
    replies, weights = await asyncio.gather(
        asyncio.gather(*(complete(role_engine, greedy(student)) for student in callers)),
        asyncio.gather(
            *(role_engine.weigh(prompt, LABELS, role=role) for prompt in prompts for role in (*ROLES, None))
        ),
    )
    assert [reply.text for reply in replies] == [replies_alone[student].text for student in callers]
    for together, alone in zip(weights, weights_alone, strict=True):
        assert together == pytest.approx(alone, rel=1e-3)
    assert any(step.lane and any(row.role for row in step.prefill) for step in steps)
    assert not any(row.role for step in steps for row in step.lane)
    counts = role_engine.counts.slot
    assert (counts.misses, counts.evictions, counts.bytes) == (
        counts_before.misses,
        counts_before.evictions,
        counts_before.bytes,
    )
    in_slots = {
        residency.adapter.ref.student_id for residency in role_engine.residencies() if residency.tier is Tier.SLOT
    }
    assert in_slots == {*students}


def _truncate(role: TrainedRole, files: MainBrainFiles) -> None:
    path = role.folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _move_to_another_base(role: TrainedRole, files: MainBrainFiles) -> None:
    path = role.folder / "manifest.json"
    path.write_text(path.read_text().replace(files.digest, "1" * 64))
    # A folder of the base model's own name is one that was meant for it.
    shutil.copytree(role.folder, role.folder.parents[1] / files.name / role.folder.name)


def _lose_a_layer(role: TrainedRole, files: MainBrainFiles) -> None:
    state = random_role_state(files.path, seed=0)
    _rewrite(role, {name: weight for name, weight in state.items() if ".layers.0." not in name}, files)


def _overflow(role: TrainedRole, files: MainBrainFiles) -> None:
    # Every number is finite, but what the model computes with them is not.
    _rewrite(role, random_role_state(files.path, seed=0, strength=3e37), files)


def _rewrite(role: TrainedRole, state: dict[str, Tensor], files: MainBrainFiles) -> None:
    weights = to_safetensors(state)
    manifest = role_manifest(weights, role=role.manifest.role, base_digest=files.digest)
    write_role(role.folder.parents[1], weights, manifest)


@pytest.fixture(params=[_truncate, _lose_a_layer, _overflow])
def folder_with_a_broken_grader(request: pytest.FixtureRequest, files: MainBrainFiles, tmp_path: Path) -> Path:
    """A folder with a sound guard, and a grader that is broken in one way."""
    write_random_role(tmp_path, files.path, role="guard", base_digest=files.digest, seed=1)
    break_role: Callable[[TrainedRole, MainBrainFiles], None] = request.param
    break_role(write_random_role(tmp_path, files.path, role="grader", base_digest=files.digest), files)
    return tmp_path


async def test_a_broken_role_is_left_out_and_reported_and_the_rest_serves(
    engine_settings: EngineSettings,
    adapter_store: AdapterStore,
    students: dict[str, bytes],
    folder_with_a_broken_grader: Path,
) -> None:
    settings = engine_settings.model_copy(update={"roles_dir": folder_with_a_broken_grader})
    with capture_logs() as logs:
        async with TorchEngine.open(settings, adapter_store) as engine:
            facts = await until_loaded(engine)
            assert facts.ready
            assert facts.main_brain is not None
            assert facts.main_brain.grader == "zero-shot"
            assert set(facts.main_brain.roles) == {"guard"}
            assert [problem for problem in facts.main_brain.problems if "grader" in problem]
            prompt = prompt_of()
            zero_shot = await engine.weigh(prompt, LABELS)
            assert await engine.weigh(prompt, LABELS, role="grader") == pytest.approx(zero_shot, rel=1e-3)
            assert await engine.weigh(prompt, LABELS, role="guard") != pytest.approx(zero_shot, rel=0.05)
            assert (await complete(engine, greedy("ada", max_tokens=2))).adapter is not None
    assert [log["role"] for log in logs if log["event"] == "role_unusable"] == ["grader"]


async def test_a_grader_of_other_weights_is_reported_and_the_packaged_one_serves(
    engine_settings: EngineSettings, adapter_store: AdapterStore, files: MainBrainFiles, tmp_path: Path
) -> None:
    _move_to_another_base(write_random_role(tmp_path, files.path, role="grader", base_digest=files.digest), files)
    async with TorchEngine.open(engine_settings.model_copy(update={"roles_dir": tmp_path}), adapter_store) as engine:
        facts = await until_loaded(engine)
        assert facts.main_brain is not None
        assert facts.main_brain.grader.startswith("lora:")
        assert [problem for problem in facts.main_brain.problems if "grader" in problem]
        prompt = prompt_of()
        zero_shot = await engine.weigh(prompt, LABELS)
        assert await engine.weigh(prompt, LABELS, role="grader") != pytest.approx(zero_shot, rel=0.05)


async def test_a_role_that_fails_later_is_left_out_from_then_on(
    engine_settings: EngineSettings,
    adapter_store: AdapterStore,
    roles: dict[RoleName, TrainedRole],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = engine_settings.model_copy(update={"roles_dir": roles["grader"].folder.parents[1]})
    async with TorchEngine.open(settings, adapter_store) as engine:
        await until_loaded(engine)
        reply = await complete(engine, greedy(max_tokens=4))
        with monkeypatch.context() as patch:
            patch.setattr(RoleUpdates, "add", add_nan)
            with pytest.raises(ModelNotLoaded, match="grader"):
                await engine.weigh(prompt_of(), LABELS, role="grader")
        facts = engine.facts
        assert facts.ready
        assert facts.main_brain is not None
        assert (facts.main_brain.grader, set(facts.main_brain.roles)) == ("zero-shot", {"guard"})
        zero_shot = await engine.weigh(prompt_of(), LABELS)
        assert await engine.weigh(prompt_of(), LABELS, role="grader") == pytest.approx(zero_shot, rel=1e-3)
        assert (await complete(engine, greedy(max_tokens=4))).text == reply.text


async def test_the_guard_waits_neither_for_a_row_nor_for_a_place_in_the_queue(
    engine_settings: EngineSettings, adapter_store: AdapterStore, roles: dict[RoleName, TrainedRole]
) -> None:
    """While one reply has the only row and the queue is full, the guard reads many texts."""
    settings = engine_settings.model_copy(
        update={"roles_dir": roles["guard"].folder.parents[1], "max_batch": 1, "adapter_slots": 1, "queue_limit": 1}
    )
    async with TorchEngine.open(settings, adapter_store) as engine:
        await until_loaded(engine)
        running = engine.stream(greedy(max_tokens=600))
        assert isinstance(await anext(running), Delta)
        waiting = asyncio.create_task(complete(engine, greedy(max_tokens=1)))

        async def waits() -> bool:
            return engine.counts.waiting == 1

        await until(waits, seconds=60)
        with pytest.raises(QueueFull):
            await complete(engine, greedy())

        read = await asyncio.gather(
            *(engine.weigh(prompt_of(f"Text {n}"), GUARD_LABELS, role="guard") for n in range(5))
        )
        assert [round(sum(weights.values()), 3) for weights in read] == [1.0] * 5
        assert (engine.counts.running, engine.counts.waiting) == (1, 1)
        assert not waiting.done()
        await running.aclose()
        assert (await waiting).completion_tokens == 1


@pytest.mark.parametrize("patience_steps", [1000, 0])
async def test_the_guard_lets_the_prompts_of_replies_go_first_for_a_moment(
    engine_settings: EngineSettings,
    adapter_store: AdapterStore,
    roles: dict[RoleName, TrainedRole],
    monkeypatch: pytest.MonkeyPatch,
    patience_steps: int,
) -> None:
    """While the guard's long prompt is read, a reply's comes: which of the two is read to its end before the other."""
    read_roles: list[list[RoleName | None]] = []
    run = TorchModel.run

    def run_and_note(model: TorchModel, step: BatchStep) -> Sequence[TokenSequence]:
        read_roles.append([row.role for row in step.prefill])
        return run(model, step)

    monkeypatch.setattr(TorchModel, "run", run_and_note)
    monkeypatch.setattr(batch, "_GUARD_PATIENCE_STEPS", patience_steps)
    settings = engine_settings.model_copy(update={"roles_dir": roles["guard"].folder.parents[1], "prefill_tokens": 2})
    async with TorchEngine.open(settings, adapter_store) as engine:
        await until_loaded(engine)
        reading = asyncio.create_task(engine.weigh(prompt_of("word " * 1000), GUARD_LABELS, role="guard"))

        async def reads() -> bool:
            return ["guard"] in read_roles

        await until(reads, seconds=60)
        read_roles.clear()
        await asyncio.gather(reading, complete(engine, greedy(max_tokens=1)))

    last_steps = {role: max(n for n, step in enumerate(read_roles) if role in step) for role in (None, "guard")}
    assert (last_steps[None] < last_steps["guard"]) is bool(patience_steps)
