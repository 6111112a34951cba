"""A watch of vLLM that crashes: the engine takes no calls until it watches again. Needs no vLLM."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from brain_server.engine.main_brain import MainBrainFacts
from brain_server.engine.settings import EngineSettings
from brain_server.vllm_engine.client import ServedModel, VllmClient
from brain_server.vllm_engine.engine import VllmEngine
from brain_server.vllm_engine.watch import VllmWatch
from mesh.adapters.store import AdapterStore
from mesh.errors import ModelNotLoaded
from testing.waiting import until


async def test_an_engine_whose_watch_has_crashed_refuses_calls_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer_and_crash(watch: VllmWatch) -> None:
        watch.served_model, watch.reason = cast("ServedModel", SimpleNamespace(context_tokens=64)), ""
        raise LookupError("a bug")

    monkeypatch.setattr(VllmWatch, "run", answer_and_crash)
    monkeypatch.setattr(MainBrainFacts, "of", lambda _: None)
    engine = VllmEngine(
        EngineSettings(engine="vllm"), store=cast("AdapterStore", None), client=cast("VllmClient", None)
    )
    # What reading the base model's files leaves, as far as a refusal needs it.
    roles, model = SimpleNamespace(main_brain=None), SimpleNamespace(stop_tokens=())
    engine._parts = cast("Any", SimpleNamespace(model=model, roles=roles, folders=None))

    async def has_crashed() -> bool:
        return bool(engine.fault)

    async with engine:
        try:
            await until(has_crashed, seconds=20)
            with pytest.raises(ModelNotLoaded, match=r"crashed \(LookupError\)"):
                engine.residencies()
        finally:
            engine._parts = None
