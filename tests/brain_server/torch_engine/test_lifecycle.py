"""Loading the base model, and closing the engine."""

import asyncio
from pathlib import Path

import pytest

from brain_server.engine.contract import (
    complete,
)
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    ModelNotLoaded,
    ServerDraining,
)
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from testing.waiting import until_loaded
from tests.brain_server.torch_engine.requests import greedy
from tests.brain_server.torch_engine.waiting import until


async def test_a_base_model_that_cannot_be_loaded_is_reported_and_nothing_crashes(
    engine_settings: EngineSettings, adapter_store: AdapterStore, tmp_path: Path
) -> None:
    settings = engine_settings.model_copy(update={"base_model": str(tmp_path / "nowhere")})
    async with TorchEngine.open(settings, adapter_store) as engine:
        facts = await until_loaded(engine)
        assert (facts.ready, facts.loading, facts.dtype) == (False, False, "")
        assert "nowhere" in facts.reason
        with pytest.raises(ModelNotLoaded, match="nowhere"):
            await complete(engine, greedy())


async def test_the_fallback_answers_if_allowed_and_health_names_the_requested_model(
    engine_settings: EngineSettings,
    adapter_store: AdapterStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # A hub without models: the real client in offline mode, with an empty cache.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    requested_model = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    settings = engine_settings.model_copy(update={"base_model": requested_model, "allow_fallback_model": True})
    async with TorchEngine.open(settings, adapter_store) as engine:
        facts = await until_loaded(engine)
        assert (facts.ready, facts.model, facts.fallback_for) == (True, DEFAULT_BASE_MODEL, requested_model)
        assert requested_model in facts.reason
        assert (await complete(engine, greedy(max_tokens=2))).model == DEFAULT_BASE_MODEL


async def test_opening_returns_before_the_model_is_loaded_and_closing_ends_all_requests(
    engine_settings: EngineSettings, adapter_store: AdapterStore
) -> None:
    async with TorchEngine.open(engine_settings, adapter_store) as engine:
        assert (engine.facts.ready, engine.facts.loading) == (False, True)
        with pytest.raises(ModelNotLoaded, match="loading"):
            await complete(engine, greedy())
        assert (await until_loaded(engine)).ready
        stream = engine.stream(greedy(max_tokens=4000))
        await anext(stream)
        queued_call = asyncio.create_task(complete(engine, greedy()))
        await until(lambda: engine.counts.waiting == 1)
    with pytest.raises(ServerDraining):
        async for _ in stream:
            pass
    with pytest.raises(ServerDraining):
        await queued_call
