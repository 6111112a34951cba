"""Graded answers, read from the JSON lines of public sets."""

import json
from pathlib import Path

import pytest

from curriculum.answers import InvalidGradedAnswer, read_graded
from mesh.lm.grading import CORRECT, INCORRECT, PARTIALLY_CORRECT

LINE: dict[str, object] = {
    "qid": "Q1",
    "module": "light",
    "question": "Why is the sky blue?",
    "reference_answers": ["Air scatters blue light most.", "The blue part of sunlight is spread by the air."],
    "answer": "the air  spreads\nthe blue part",
    "label2": "correct",
}
SAF_LINE: dict[str, object] = {
    "qid": "1.1",
    "question": "What?",
    "reference_answers": [],
    "answer": "x",
    "label": "Partially correct",
}


def write(tmp_path: Path, *lines: dict[str, object]) -> Path:
    path = tmp_path / "set.train.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_an_answer_is_judged_by_the_reference_that_shares_most_of_its_words(tmp_path: Path) -> None:
    (answer,) = read_graded(write(tmp_path, LINE))
    assert answer.answer == "the air spreads the blue part"
    assert answer.closest_reference == "The blue part of sunlight is spread by the air."
    criteria = answer.criteria(answer.closest_reference)
    assert (criteria.question, criteria.reference_answer) == (answer.question, answer.closest_reference)


def test_the_labels_of_all_sets_become_ours(tmp_path: Path) -> None:
    contradictory: dict[str, object] = {"label2": "", "label": "contradictory"}
    answers = read_graded(write(tmp_path, LINE, SAF_LINE, LINE | {"label2": "incorrect"}, LINE | contradictory))
    assert [answer.label for answer in answers] == [CORRECT, PARTIALLY_CORRECT, INCORRECT, INCORRECT]
    assert answers[1].closest_reference == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"question": None}, "question"),
        ({"label2": "perhaps"}, "label"),
        ({"reference_answers": "one text"}, "reference_answers"),
        ({"reference_answers": [1]}, "reference_answers"),
    ],
)
def test_a_faulty_line_names_file_line_and_field(tmp_path: Path, change: dict[str, object], field: str) -> None:
    path = write(tmp_path, LINE, LINE | change)
    with pytest.raises(InvalidGradedAnswer, match=rf"set\.train\.jsonl:2: {field}: "):
        read_graded(path)
