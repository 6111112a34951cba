"""Health while the torch thread stands still: an engine that can't decode says so and why, and comes back by itself."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from brain_server.engine.contract import Generation, Sampling, complete
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.compute.model import Step, TorchModel
from brain_server.torch_engine.compute.sequences import Task
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.store import AdapterStore
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

STALL_SECONDS = 0.3
ASKED = Generation(
    prompt=Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Hi!"),)),
    sampling=Sampling(temperature=0.0, max_tokens=4),
)


@pytest.fixture
async def engine(
    engine_settings: EngineSettings, adapter_store: AdapterStore, small_llama: Path
) -> AsyncIterator[TorchEngine]:
    settings = engine_settings.model_copy(update={"base_model": str(small_llama), "stall_seconds": STALL_SECONDS})
    async with TorchEngine.open(settings, adapter_store) as engine:
        facts = await engine.wait_loaded()
        assert facts.ready, facts.reason
        yield engine


async def test_a_step_that_stands_still_is_told_and_the_engine_comes_back_by_itself(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    computes, goes_on = TorchModel.run, threading.Event()

    def stand_still(model: TorchModel, step: Step) -> Sequence[Task]:
        """As a driver that hangs would; then the step is computed."""
        assert goes_on.wait(30)
        return computes(model, step)

    expected = await complete(engine, ASKED)
    monkeypatch.setattr(TorchModel, "run", stand_still)
    try:
        replying = asyncio.create_task(complete(engine, ASKED))
        await until(lambda: not engine.facts.ready)
        assert "stood still" in engine.facts.reason
        assert not engine.facts.loading
    finally:
        goes_on.set()
    assert (await replying).text == expected.text
    assert (engine.facts.ready, engine.facts.reason) == (True, "")


async def test_an_engine_that_rests_does_not_stand_still(engine: TorchEngine) -> None:
    await complete(engine, ASKED)
    resting = asyncio.get_running_loop().time() + 2 * STALL_SECONDS
    await until(lambda: asyncio.get_running_loop().time() > resting)
    assert engine.facts.ready


async def until(holds: Callable[[], bool]) -> None:
    """Lets the engine's tasks run until something holds."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)
