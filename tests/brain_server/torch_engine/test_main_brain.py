"""The engine answers with the Main Brain: the base model with its tutor merged in, or without one that is damaged."""

from pathlib import Path

import pytest

from brain_server.engine.contract import complete
from brain_server.engine.main_brain import MainBrainFacts
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.store import AdapterStore
from mesh.lm.base_files import fetch
from mesh.main_brain.files import main_brain_digest
from mesh.main_brain.roles import TrainedRole
from testing.models.random_roles import write_random_role
from testing.waiting import until_loaded
from tests.brain_server.torch_engine.requests import greedy


@pytest.fixture
def settings(engine_settings: EngineSettings, small_llama: Path, tmp_path: Path) -> EngineSettings:
    """The small base model, with folders of this test alone for roles and merged files."""
    changes = {"base_model": str(small_llama), "model_cache_dir": tmp_path / "cache", "roles_dir": tmp_path / "roles"}
    return engine_settings.model_copy(update=changes)


@pytest.fixture
def base_weights_digest(settings: EngineSettings) -> str:
    return fetch(settings.base_model, settings.model_cache_dir).digest


@pytest.fixture
def tutor(settings: EngineSettings, small_llama: Path, base_weights_digest: str) -> TrainedRole:
    assert settings.roles_dir is not None
    return write_random_role(settings.roles_dir, small_llama, role="tutor", base_digest=base_weights_digest)


async def reply_and_facts(settings: EngineSettings, store: AdapterStore) -> tuple[str, MainBrainFacts]:
    async with TorchEngine.open(settings, store) as engine:
        facts = (await until_loaded(engine)).main_brain
        assert facts is not None
        reply = await complete(engine, greedy())
        assert reply.main_brain == facts.digest
        return reply.text, facts


async def test_the_tutor_answers_and_is_named(
    settings: EngineSettings, adapter_store: AdapterStore, tutor: TrainedRole, base_weights_digest: str
) -> None:
    text, facts = await reply_and_facts(settings, adapter_store)
    plain_text, plain_facts = await reply_and_facts(settings.model_copy(update={"roles_dir": None}), adapter_store)

    digest = main_brain_digest(base_weights_digest, tutor.manifest.sha256)
    assert facts == MainBrainFacts(digest=digest, tutor=tutor.identity, grader="zero-shot")
    assert plain_facts == MainBrainFacts(digest=base_weights_digest, tutor="none", grader="zero-shot")
    assert text != plain_text


async def test_without_a_damaged_tutor_the_base_model_answers_and_says_why(
    settings: EngineSettings, adapter_store: AdapterStore, tutor: TrainedRole, base_weights_digest: str
) -> None:
    (tutor.folder / "adapter_model.safetensors").write_bytes(b"damage")

    _, facts = await reply_and_facts(settings, adapter_store)

    assert (facts.digest, facts.tutor) == (base_weights_digest, "none")
    assert "do not have the sha256" in facts.problems[0]
