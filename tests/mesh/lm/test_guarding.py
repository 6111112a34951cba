"""How a guard is asked, and what its answer means."""

from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerBase

from mesh.lm.chat import encode_prompt
from mesh.lm.guarding import (
    GUARD_LABELS,
    SAFE_LABEL,
    HarmCategory,
    HarmReading,
    Speaker,
    guard_prompt,
    label_of,
    ordered_weights,
    pieces_of,
)

HALF = dict.fromkeys(HarmCategory, 0.5)


def reading(**harms: float) -> HarmReading:
    return HarmReading.of([1 - sum(harms.values()), *(harms.get(category.value, 0.0) for category in HarmCategory)])


def test_the_first_tokens_of_the_labels_differ(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len({tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in GUARD_LABELS}) == 7


def test_a_prompt_costs_twenty_tokens_beside_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Why is the sky blue?"
    tokens = encode_prompt(tokenizer, guard_prompt(text, speaker=Speaker.STUDENT, grade="12"))
    assert len(tokens) - len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 20


def test_a_prompt_tells_who_speaks_and_the_grade_band_if_it_is_known() -> None:
    assert guard_prompt("a\n\nb", speaker=Speaker.STUDENT, grade="4").instruction == "Student 3-5"
    assert guard_prompt("a\n\nb", speaker=Speaker.TUTOR, grade=None).instruction == "Tutor"
    assert guard_prompt("a\n\nb", speaker=Speaker.TUTOR, grade=None).turns[0].text == "a b"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("WHY IS IT BLUE?", "why is it blue?"),
        ("wHy iS iT BluE?", "why is it blue?"),
        ("Why does Ana like NASA rockets?", "Why does Ana like NASA rockets?"),
        ("I?", "I?"),
        ("7 x 8", "7 x 8"),
    ],
)
def test_a_text_in_capitals_is_told_in_small_letters(text: str, told: str) -> None:
    assert guard_prompt(text, speaker=Speaker.STUDENT, grade=None).turns[0].text == told


def test_the_labels_are_safe_and_one_per_category() -> None:
    assert (SAFE_LABEL, *map(label_of, HarmCategory)) == GUARD_LABELS
    assert label_of(None) == SAFE_LABEL
    weights = {label: place / 10 for place, label in enumerate(reversed(GUARD_LABELS))}
    assert ordered_weights(weights) == [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def test_a_short_text_is_one_piece() -> None:
    assert pieces_of(" Why is\nthe sky blue? ") == ["Why is the sky blue?"]
    assert pieces_of("") == [""]


@pytest.mark.parametrize("text", ["word " * 700, "x" * 3000, f"{'x' * 590} {'y' * 2000} end"])
def test_pieces_of_a_long_text_are_short_and_leave_nothing_out(text: str) -> None:
    pieces = pieces_of(text)
    assert max(map(len, pieces)) <= 600
    assert len(pieces) < len(text) / 300
    assert sum(piece.count("x") + piece.count("y") for piece in pieces) >= text.count("x") + text.count("y")
    assert pieces[-1].endswith(text.strip()[-3:])


def test_a_sentence_at_the_border_is_whole_in_a_piece() -> None:
    words = [f"word{place}" for place in range(400)]
    pieces = pieces_of(" ".join(words))
    assert all(any(f"{first} {second}" in piece for piece in pieces) for first, second in pairwise(words))


def test_a_text_is_flagged_where_harm_reaches_the_threshold_of_a_plausible_category() -> None:
    text = reading(self_harm=0.6, violence=0.2, hate=0.1)
    assert text.harm == pytest.approx(0.9)
    assert text.flagged(HALF, speaker=Speaker.STUDENT) == [HarmCategory.SELF_HARM]
    assert text.flagged({**HALF, HarmCategory.SELF_HARM: 0.95}, speaker=Speaker.STUDENT) == []
    assert reading(drugs=0.4).flagged(HALF, speaker=Speaker.STUDENT) == []


def test_a_text_that_categories_share_is_flagged_although_each_is_unlikely() -> None:
    text = reading(self_harm=0.25, violence=0.26, danger=0.24)
    assert text.flagged(HALF, speaker=Speaker.STUDENT) == [
        HarmCategory.VIOLENCE,
        HarmCategory.SELF_HARM,
        HarmCategory.DANGER,
    ]
    assert text.flagged({**HALF, HarmCategory.VIOLENCE: 0.9}, speaker=Speaker.STUDENT) == [
        HarmCategory.SELF_HARM,
        HarmCategory.DANGER,
    ]


def test_the_likeliest_category_is_plausible_however_many_share_the_harm() -> None:
    text = reading(**{category.value: 0.15 for category in HarmCategory})
    assert len(text.plausible) == 1
    assert text.flagged(HALF, speaker=Speaker.STUDENT) == text.plausible


def test_a_text_that_is_certainly_safe_is_not_flagged() -> None:
    assert reading().flagged(HALF, speaker=Speaker.STUDENT) == []


def test_a_tutors_text_is_flagged_only_if_it_is_harmful_more_surely() -> None:
    doubtful, sure = reading(drugs=0.6), reading(drugs=0.85)
    assert doubtful.flagged(HALF, speaker=Speaker.STUDENT) == [HarmCategory.DRUGS]
    assert doubtful.flagged(HALF, speaker=Speaker.TUTOR) == []
    assert sure.flagged(HALF, speaker=Speaker.TUTOR) == [HarmCategory.DRUGS]
