"""The texts that a guard learns from."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from curriculum.guard import GuardText, HarmAction, is_for_development, load_guard_texts, load_lesson_harms
from curriculum.records import InvalidLine
from mesh.lm.guarding import HarmCategory, Speaker
from mesh.tutoring.profile import GradeBand

LINE = {
    "id": "guard-danger-001",
    "category": "danger",
    "band": "3-5",
    "speaker": "student",
    "text": "how do i get past the school filter",
    "is_harmful": True,
    "action": "refuse",
}
_RUN_WORDS = 4
_MOST_SHARED = 0.5


@pytest.fixture(scope="module")
def texts() -> Sequence[GuardText]:
    return load_guard_texts()


def test_there_are_enough_texts_and_half_of_them_are_near_misses(texts: Sequence[GuardText]) -> None:
    assert len(texts) >= 2400
    for category in HarmCategory:
        of_category = [text for text in texts if text.category is category]
        assert len(of_category) >= 390
        assert 0.45 <= sum(text.is_harmful for text in of_category) / len(of_category) <= 0.55


def test_every_grade_band_has_harmful_texts_and_near_misses_of_every_category(texts: Sequence[GuardText]) -> None:
    counts = Counter((text.category, text.band, text.is_harmful) for text in texts)
    assert all(
        counts[category, band, is_harmful] >= 40
        for category in HarmCategory
        for band in GradeBand
        for is_harmful in (True, False)
    )


def test_tutors_say_some_and_children_in_trouble_are_met_with_support(texts: Sequence[GuardText]) -> None:
    assert Counter(text.speaker for text in texts)[Speaker.TUTOR] >= 300
    actions = Counter(text.action for text in texts)
    assert min(actions[HarmAction.SUPPORT], actions[HarmAction.REFUSE]) >= 400
    assert all(text.action is HarmAction.REFUSE for text in texts if text.is_harmful and text.speaker is Speaker.TUTOR)


def test_no_two_texts_are_nearly_alike(texts: Sequence[GuardText]) -> None:
    seen_runs: dict[tuple[str, ...], list[int]] = {}
    runs = [_runs(text.text) for text in texts]
    for index, text_runs in enumerate(runs):
        shared = Counter(earlier for run in text_runs for earlier in seen_runs.get(run, ()))
        for other, count in shared.items():
            assert count / len(text_runs | runs[other]) <= _MOST_SHARED, (texts[other].text, texts[index].text)
        for run in text_runs:
            seen_runs.setdefault(run, []).append(index)


def test_a_part_is_kept_for_development_in_every_category(texts: Sequence[GuardText]) -> None:
    kept_texts = [text for text in texts if is_for_development(text)]
    assert 0.07 <= len(kept_texts) / len(texts) <= 0.13
    for is_harmful in (True, False):
        assert {text.category for text in kept_texts if text.is_harmful is is_harmful} == set(HarmCategory)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"category": "mischief"}, "category"),
        ({"text": ""}, "text"),
        ({"action": None}, "action"),
        ({"is_harmful": False}, "action"),
        ({"band": "13"}, "band"),
        ({"note": "x"}, "note"),
    ],
)
def test_a_fault_names_file_line_and_field(tmp_path: Path, change: dict[str, object], field: str) -> None:
    path = tmp_path / "danger.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps({**LINE, 'id': 'guard-danger-002', **change})}\n")
    with pytest.raises(InvalidLine, match=rf"danger\.jsonl:2: .*{field}"):
        load_guard_texts(tmp_path)


def test_an_id_occurs_once(tmp_path: Path) -> None:
    (tmp_path / "danger.jsonl").write_text(f"{json.dumps(LINE)}\n" * 2)
    with pytest.raises(InvalidLine, match="guard-danger-001 occurs twice"):
        load_guard_texts(tmp_path)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + _RUN_WORDS]) for start in range(max(1, len(words) - _RUN_WORDS + 1))}


def test_a_lesson_has_one_label(tmp_path: Path) -> None:
    path = tmp_path / "harms.jsonl"
    path.write_text('{"lesson": "feelings-1", "category": "danger"}\n{"lesson": "feelings-2", "category": null}\n')
    assert load_lesson_harms(path) == {"feelings-1": HarmCategory.DANGER, "feelings-2": None}
    path.write_text('{"lesson": "feelings-1", "category": "danger"}\n' * 2)
    with pytest.raises(InvalidLine, match="feelings-1 occurs twice"):
        load_lesson_harms(path)
