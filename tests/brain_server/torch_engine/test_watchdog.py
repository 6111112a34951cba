"""Health while the torch thread hangs: the engine reports that it can't decode and why, and recovers by itself."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from brain_server.engine.contract import Generation, Sampling, complete
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.compute.model import TorchModel
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.step import BatchStep
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.store import AdapterStore
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile
from testing.waiting import until_loaded
from tests.brain_server.torch_engine.waiting import until

STALL_SECONDS = 0.3
GENERATION = Generation(
    prompt=Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Hi!"),)),
    sampling=Sampling(temperature=0.0, max_tokens=4),
)


@pytest.fixture
async def engine(
    engine_settings: EngineSettings, adapter_store: AdapterStore, small_llama: Path
) -> AsyncIterator[TorchEngine]:
    settings = engine_settings.model_copy(update={"base_model": str(small_llama), "stall_seconds": STALL_SECONDS})
    async with TorchEngine.open(settings, adapter_store) as engine:
        facts = await until_loaded(engine)
        assert facts.ready, facts.reason
        yield engine


async def test_a_step_that_hangs_is_reported_and_the_engine_recovers_by_itself(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hang_ends = TorchModel.run, threading.Event()

    def hang_and_run(model: TorchModel, step: BatchStep) -> Sequence[TokenSequence]:
        """Blocks as a driver that hangs, then computes the step."""
        assert hang_ends.wait(30)
        return run(model, step)

    usual_reply = await complete(engine, GENERATION)
    monkeypatch.setattr(TorchModel, "run", hang_and_run)
    try:
        reply = asyncio.create_task(complete(engine, GENERATION))
        await until(lambda: not engine.facts.ready)
        assert "no progress" in engine.facts.reason
        assert not engine.facts.loading
    finally:
        hang_ends.set()
    assert (await reply).text == usual_reply.text
    assert (engine.facts.ready, engine.facts.reason) == (True, "")


async def test_an_idle_engine_is_not_reported_as_hanging(engine: TorchEngine) -> None:
    await complete(engine, GENERATION)
    end_at = asyncio.get_running_loop().time() + 2 * STALL_SECONDS
    await until(lambda: asyncio.get_running_loop().time() > end_at)
    assert engine.facts.ready
