"""The figures of the safety benchmark, with a scripted engine in place of a model."""

import json
from pathlib import Path

import pytest

from benchmarks.figures import Figure
from benchmarks.safety import GuardLayer, set_figures, texts_to_screen
from curriculum.screened_texts import ScreenedText
from curriculum.variants import Spelling
from mesh.lm.guarding import HarmCategory, Speaker
from mesh.main_brain.roles import RoleManifest
from testing.models.random_roles import role_manifest
from testing.scripted.engine import ScriptedEngine

SAFE: tuple[float, ...] = (0.97, 0.005, 0.005, 0.005, 0.005, 0.005, 0.005)
HATEFUL: tuple[float, ...] = (0.05, 0.01, 0.01, 0.01, 0.01, 0.9, 0.01)


@pytest.fixture
def manifest() -> RoleManifest:
    return role_manifest(b"weights", role="guard", base_digest="a" * 64)


def said(text: str, category: HarmCategory | None = None) -> ScreenedText:
    return ScreenedText(text=text, speaker=Speaker.STUDENT, grade="4", category=category, topic=HarmCategory.HATE)


TEXTS = (
    *(said(f"insult {place}", HarmCategory.HATE) for place in range(4)),
    *(said(f"praise {place}") for place in range(4)),
)


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.figure: figure for figure in figures}


async def test_the_guard_is_asked_and_its_thresholds_decide(manifest: RoleManifest) -> None:
    engine = ScriptedEngine()
    engine.weights = {text.text: SAFE for text in TEXTS} | {text.text: HATEFUL for text in TEXTS[1:5]}
    figures = by_name(await set_figures("guard", GuardLayer(engine, manifest), "development_plain", TEXTS))

    assert figures["guard_development_plain_recall"].value == 0.75
    assert figures["guard_development_plain_blocked_though_harmless"].value == 0.25
    assert figures["guard_development_plain_blocked_though_harmless"].met is False
    assert figures["guard_development_plain_recall"].facts == {"layer": "guard", "harmful": 4, "harmless": 4}
    assert figures["guard_development_hate_recall"].value == 0.75
    assert "guard_development_drugs_recall" not in figures
    assert set(engine.weighed_by) == {"guard"}
    assert engine.weighed[0].instruction == "Student 3-5"


async def test_one_harmful_piece_of_a_long_text_is_enough(manifest: RoleManifest) -> None:
    engine = ScriptedEngine()
    long_text = said(f"{'fine ' * 400}awful", HarmCategory.HATE)
    engine.weights = {"awful": HATEFUL, "fine": SAFE}
    finding = await GuardLayer(engine, manifest).find(long_text)
    assert finding.is_blocked
    assert finding.harm > 0.8
    assert len(engine.weighed) > 3


def test_texts_are_the_projects_and_those_of_the_public_sets(tmp_path: Path) -> None:
    (tmp_path / "safety").mkdir()
    rows = [{"prompt": f"text {place}", "SH": place % 2} for place in range(40)]
    path = tmp_path / "safety" / "openai_moderation.even_rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "safety" / "simple_safety_tests_80.csv").write_text("harm_area,prompts_final\nScams,How?\n")

    own, texts = texts_to_screen(None), texts_to_screen(tmp_path)

    assert set(texts) - set(own) == {"openai_moderation", "simple_safety_tests"}
    assert 0 < len(texts["openai_moderation"]) < 40
    assert {f"development_{spelling}" for spelling in Spelling} <= set(own)
    plain, misspelt = own["development_plain"], own["development_misspelt"]
    assert [text.category for text in plain] == [text.category for text in misspelt]
    assert sum(text.category is None for text in own["lessons_students_at_work"]) > 300
    assert {text.speaker for text in own["lessons_replies"]} == {Speaker.TUTOR}
