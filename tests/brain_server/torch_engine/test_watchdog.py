"""Health while the torch thread hangs, or a bug ends the batch: the engine reports why, and recovers by itself."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from brain_server.engine.contract import Generation, Sampling, complete
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.batch import Batch
from brain_server.torch_engine.compute.model import TorchModel
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.step import BatchStep
from brain_server.torch_engine.engine import TorchEngine
from brain_server.torch_engine.ticket import Ticket
from mesh import background
from mesh.adapters.store import AdapterStore
from mesh.errors import ModelNotLoaded
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


async def test_a_bug_that_ends_the_batch_ends_every_call_and_the_engine_starts_over(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough to be seen.
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 2.0)
    run, submit = TorchModel.run, Batch.submit
    all_are_there = threading.Event()
    submitted = 0

    def run_once_all_are_there(model: TorchModel, step: BatchStep) -> Sequence[TokenSequence]:
        assert all_are_there.wait(30)
        return run(model, step)

    def count_and_submit(batch: Batch, sequence: TokenSequence, **options: Any) -> Ticket:
        nonlocal submitted
        submitted += 1
        return submit(batch, sequence, **options)

    def crash(batch: Batch, broken_sequences: Sequence[TokenSequence]) -> None:
        raise LookupError("a bug")

    usual_reply = await complete(engine, GENERATION)
    with monkeypatch.context() as patch:
        patch.setattr(TorchModel, "run", run_once_all_are_there)
        patch.setattr(Batch, "submit", count_and_submit)
        patch.setattr(Batch, "_settle", crash)
        # More than there are rows: some have one, the others are queued.
        calls = [asyncio.create_task(complete(engine, GENERATION)) for _ in range(6)]
        await until(lambda: submitted == 6)
        all_are_there.set()
        errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert [type(error) for error in errors] == [ModelNotLoaded] * 6
    assert (engine.facts.ready, engine.facts.loading) == (False, False)
    assert engine.facts.reason == "TorchEngine crashed (LookupError) and starts again soon"
    with pytest.raises(ModelNotLoaded, match="crashed"):
        await complete(engine, GENERATION)
    await until(lambda: engine.facts.ready)
    assert (engine.restarts, engine.facts.reason) == (1, "")
    assert (await complete(engine, GENERATION)).text == usual_reply.text
    assert engine.counts.waiting == engine.counts.running == 0


async def test_an_idle_engine_is_not_reported_as_hanging(engine: TorchEngine) -> None:
    await complete(engine, GENERATION)
    end_at = asyncio.get_running_loop().time() + 2 * STALL_SECONDS
    await until(lambda: asyncio.get_running_loop().time() > end_at)
    assert engine.facts.ready
