"""The times of screening: what is compared, and that harm is never sent; no times, as those depend on the machine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.figures import Figure
from benchmarks.harmful_streams import SCRIPTS, harmful_stream_figures
from benchmarks.main_brain import open_main_brain
from benchmarks.safety_times import cost_of_off, figures, first_token_figures, questions, timed_rounds
from benchmarks.timed_calls import time_call
from brain_server.engine.contract import Engine
from brain_server.safety.settings import SafetySettings
from brain_server.settings import BrainSettings
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.guarding import HarmCategory
from mesh.main_brain.files import fetch_main_brain
from mesh.settings import BaseModelSettings, load_settings
from testing.models.random_roles import role_manifest
from testing.models.small_models import write_small_llama
from testing.scripted.engine import PIECES, ScriptedEngine

SETTINGS = SafetySettings()


@pytest.fixture
def scripted_engine() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.has_guard(role_manifest(b"weights", role="guard", base_digest="a" * 64))
    engine.pieces = ("Once there was a river. ",) * 60
    return engine


@pytest.fixture
async def small_engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """The real engine on a small base model, without a guard."""
    files = fetch_main_brain(DEFAULT_BASE_MODEL, load_settings(BaseModelSettings).model_cache_dir)
    folder = write_small_llama(tmp_path / "small-llama", AutoTokenizer.from_pretrained(files.path))
    settings = BrainSettings(
        base_model=str(folder), model_cache_dir=tmp_path, device="cpu", dtype="float32", kv_cache_bytes=64 * 1024 * 1024
    )
    async with open_main_brain(settings) as (engine, _):
        yield engine


def by_name(found: list[Figure]) -> dict[str, Figure]:
    return {figure.figure: figure for figure in found}


async def test_each_arm_is_compared_with_the_one_that_screens_less(scripted_engine: ScriptedEngine) -> None:
    rounds = await timed_rounds(scripted_engine, SETTINGS, batch=8, rounds=2, tokens=8)
    assert {len(calls) for of_arm in rounds.values() for calls in of_arm} == {8}
    assert {arm: len(of_arm) for arm, of_arm in rounds.items()} == dict.fromkeys(
        ("without", "off", "monitor", "enforce"), 2
    )
    result = by_name(list(first_token_figures(rounds, batch=8, has_guard=True)))
    readings = {arm: sum(call.readings for calls in of_arm for call in calls) for arm, of_arm in rounds.items()}
    assert (readings["without"], readings["off"]) == (0, 0)
    # Question and reply of each call.
    assert min(readings["monitor"], readings["enforce"]) >= 2 * 8 * 2
    assert result["first_decoded_token_off_at_batch_8"].facts["guard_readings"] == 0
    assert result["first_decoded_token_enforce_at_batch_8"].facts["guard_readings"] == readings["enforce"]
    assert result["first_decoded_token_off_at_batch_8"].facts["what"] == "off over without"
    assert result["first_delivered_text_enforce_at_batch_8"].facts["what"] == "enforce over off"
    targets = {name for name, figure in result.items() if figure.goal}
    assert targets == {"first_decoded_token_monitor_at_batch_8", "first_decoded_token_enforce_at_batch_8"}
    assert not any(figure.goal for figure in first_token_figures(rounds, batch=8, has_guard=False))


async def test_a_blocked_question_is_no_time(scripted_engine: ScriptedEngine) -> None:
    scripted_engine.harmful = {"story": HarmCategory.DANGER}
    with pytest.raises(RuntimeError, match="SAFETY=enforce, a harmless question"):
        await timed_rounds(scripted_engine, SETTINGS, batch=1, rounds=1, tokens=8)


async def test_a_call_is_timed_from_the_engine_to_its_caller(scripted_engine: ScriptedEngine) -> None:
    (generation,) = questions(1, round_number=0, tokens=8)
    scripted_engine.pieces = PIECES
    calls = {arm: await time_call(scripted_engine, SETTINGS, arm, generation) for arm in ("without", "enforce")}
    assert calls["without"].pieces == list(PIECES)
    assert "".join(calls["enforce"].pieces) == "".join(PIECES)
    assert [call.readings for call in calls.values()] == [0, 2]
    for call in calls.values():
        moments = [call.started_at, call.decoded_at[0], call.delivered_at[0], call.ended_at]
        assert moments == sorted(moments)
        assert len(call.decoded_at) == len(PIECES)


def test_scripts_end_their_harmful_sentence_where_they_say() -> None:
    for script in SCRIPTS.values():
        assert "".join(script.words[: script.last_harmful_place + 1]).endswith(script.harmful)


async def test_a_reply_that_turns_harmful_is_stopped_while_the_others_go_on(small_engine: Engine) -> None:
    generations = questions(2, round_number=0, tokens=48)
    result = by_name(await harmful_stream_figures(small_engine, SETTINGS, generations, rounds=1))
    assert {name for name, figure in result.items() if figure.goal} == {
        f"harmful_sentence_sent_{name}_at_batch_2" for name in SCRIPTS
    }
    assert all(figure.facts["blocked"] == figure.facts["calls"] == 1 for figure in result.values())
    assert all(figure.met for figure in result.values() if figure.goal)
    assert all(f"harmful_sentence_to_end_{name}_at_batch_2" in result for name in SCRIPTS)


async def test_harm_that_is_sent_misses_the_target(scripted_engine: ScriptedEngine) -> None:
    without_rules = SafetySettings(safety_rules=())
    generations = questions(1, round_number=0, tokens=48)
    result = by_name(await harmful_stream_figures(scripted_engine, without_rules, generations, rounds=1))
    assert [figure.met for figure in result.values() if figure.goal] == [False] * len(SCRIPTS)


async def test_all_figures_come_from_one_run_on_the_real_engine(small_engine: Engine) -> None:
    result = by_name([figure async for figure in figures(small_engine, SETTINGS, rounds=1, tokens=32)])
    assert {name for name in result if name.startswith("first_decoded_token")} == {
        f"first_decoded_token_{arm}_at_batch_{batch}" for arm in ("off", "monitor", "enforce") for batch in (1, 8)
    }
    assert all(figure.value > 0 for name, figure in result.items() if name.startswith("first_"))


async def test_off_is_measured_by_the_piece() -> None:
    figure = await cost_of_off(replies=2)
    assert (figure.unit, figure.facts["pieces"], figure.goal) == ("us", 200, None)
