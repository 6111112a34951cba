"""How a guard is calibrated, and how its thresholds are chosen."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from curriculum.guard import is_for_development, load_guard_texts
from curriculum.library import is_held_out, load_lessons
from curriculum.screened_texts import ScreenedText
from curriculum.train.guard import MOST_FLAGGED, calibrate, choose_thresholds, choosing_texts, guard_examples
from curriculum.train.guard_role import GuardTexts
from mesh.lm.guarding import GUARD_LABELS, HarmCategory, HarmReading, Speaker, thresholds_of_grade
from mesh.main_brain.base import BaseModel
from mesh.tutoring.profile import GradeBand

GRADES = {GradeBand.K_2: "1", GradeBand.G3_5: "4", GradeBand.G6_8: "7", GradeBand.G9_12: "11"}


def harmless(band: GradeBand, count: int) -> list[ScreenedText]:
    return [ScreenedText(text=f"text {place}", speaker=Speaker.STUDENT, grade=GRADES[band]) for place in range(count)]


def drug_readings(scores: Sequence[float]) -> list[HarmReading]:
    return [HarmReading.of([1 - score, 0.0, 0.0, 0.0, score, 0.0, 0.0]) for score in scores]


def share_flagged(texts: Sequence[ScreenedText], readings: Sequence[HarmReading]) -> float:
    thresholds = choose_thresholds(texts, readings)
    flags = [
        bool(reading.flagged(thresholds_of_grade(thresholds, text.grade), speaker=text.speaker))
        for text, reading in zip(texts, readings, strict=True)
    ]
    return sum(flags) / len(flags)


def test_no_more_of_the_harmless_texts_are_flagged_than_may_be_and_nearly_as_many() -> None:
    texts = [text for band in GradeBand for text in harmless(band, 200)]
    readings = drug_readings([(place + 1) / 1000 for place in range(200)] * 4)
    assert MOST_FLAGGED - 0.01 <= share_flagged(texts, readings) <= MOST_FLAGGED


def test_what_a_tutor_says_chooses_no_threshold() -> None:
    texts, readings = harmless(GradeBand.K_2, 50), drug_readings([0.3] * 50)
    tutors = [replace(text, speaker=Speaker.TUTOR) for text in texts]
    with_tutors = choose_thresholds([*texts, *tutors], [*readings, *drug_readings([0.9] * 50)])
    assert with_tutors == choose_thresholds(texts, readings)


def test_a_band_whose_harmless_texts_score_high_has_a_higher_threshold() -> None:
    texts = [*harmless(GradeBand.K_2, 100), *harmless(GradeBand.G9_12, 100)]
    readings = drug_readings([*(place / 500 for place in range(100)), *(place / 110 for place in range(100))])
    drugs = choose_thresholds(texts, readings)[HarmCategory.DRUGS]
    assert drugs[GradeBand.K_2] < drugs[GradeBand.G9_12]


def test_self_harm_is_flagged_sooner_than_anything_else() -> None:
    thresholds = choose_thresholds(harmless(GradeBand.K_2, 50), drug_readings([0.3] * 50))
    for band in GradeBand:
        others = {thresholds[category][band] for category in HarmCategory if category is not HarmCategory.SELF_HARM}
        assert thresholds[HarmCategory.SELF_HARM][band] < min(others)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_guard_that_is_certain_of_every_text_has_thresholds_that_a_manifest_takes(score: float) -> None:
    thresholds = choose_thresholds(harmless(GradeBand.K_2, 30), drug_readings([score] * 30))
    assert all(0 < number < 1 for row in thresholds.values() for number in row.values())


def test_a_guard_that_knows_nothing_calls_half_of_the_texts_harmful() -> None:
    texts = harmless(GradeBand.K_2, 60)
    harmful = [replace(text, category=HarmCategory.DRUGS) for text in texts[:20]]
    even = [1 / len(GUARD_LABELS)] * len(GUARD_LABELS)
    safe, *_ = calibrate([*texts, *harmful], [even] * 80).apply(even)
    assert safe == pytest.approx(0.5, abs=0.1)


def test_development_texts_choose_as_they_are_misspelt_and_in_leet() -> None:
    texts = harmless(GradeBand.K_2, 10)
    chosen = choosing_texts(texts, seed=0)
    assert chosen[:10] == texts
    assert len(chosen) == 30
    assert {text.text for text in chosen[10:20]}.isdisjoint(text.text for text in texts)
    assert any(character.isdigit() for character in chosen[20].text.split()[0])


def test_a_guard_learns_what_it_will_read_in_serving(small_base: BaseModel) -> None:
    text, trick = (ScreenedText(text=words, speaker=Speaker.STUDENT, grade="4") for words in ("a bomb", "a b0m\u200bb"))
    plain, undone = guard_examples([text, trick], small_base.tokenizer)
    assert plain.example.tokens == undone.example.tokens


def test_nothing_that_is_held_out_is_taught() -> None:
    texts = GuardTexts.load(None)
    taught = {text.text for text in (*texts.taught, *texts.lessons)}
    assert taught.isdisjoint(text.text for text in load_guard_texts() if is_for_development(text))
    held_out = [lesson for lesson in load_lessons() if is_held_out(lesson)]
    # A few words, such as "idk", stand in several lessons.
    assert len(taught & {text for lesson in held_out for text in lesson.texts}) < 5
    epochs = texts.epoch_texts(2, seed=0)
    assert len(epochs) == 2 * (len(texts.taught) + 400)
    assert epochs == texts.epoch_texts(2, seed=0) != texts.epoch_texts(2, seed=1)
