"""What the public sets must be: a fault names file, line and field, before anything is trained."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from transformers import PreTrainedTokenizerBase

from curriculum.answers import InvalidGradedAnswer, read_graded
from curriculum.lesson import Kind
from curriculum.library import load_lessons
from curriculum.prompts import question_and_answer
from curriculum.train.grading_sets import explained_answers, graded_lessons
from curriculum.train.tutor import plain_examples
from mesh.lm.grading import CORRECT, INCORRECT

LINE = {
    "question": "Why is the sky blue?",
    "answer": "Air scatters blue light.",
    "hypothesis": "The sky is blue because air scatters blue light",
    "facts": ["Blue light is scattered by air"],
}
OTHER = {
    "question": "Why is grass green?",
    "answer": "It holds a green dye.",
    "hypothesis": "Grass is green because it holds a green dye",
    "facts": [],
}


def read_plain(path: Path) -> Iterable[object]:
    # Of no use to a line with a fault.
    return plain_examples(path, create_autospec(PreTrainedTokenizerBase))


def write(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "entailmentbank.train.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("read", [explained_answers, read_graded, read_plain])
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('"a text"', "is not a JSON object"),
        ({**LINE, "question": 7}, "question: is missing or not a text"),
    ],
)
def test_a_faulty_line_names_file_line_and_field(
    tmp_path: Path, read: Callable[[Path], Iterable[object]], line: object, fault: str
) -> None:
    path = write(tmp_path, "", line)
    with pytest.raises(InvalidGradedAnswer) as caught:
        list(read(path))
    place, _, rest = str(caught.value).partition(": ")
    assert place == f"{path}:2"
    assert fault in rest or (read is read_graded and rest.startswith("qid: "))


@pytest.mark.parametrize("facts", [None, "one", [1]])
def test_facts_are_a_list_of_texts(tmp_path: Path, facts: object) -> None:
    path = write(tmp_path, {**LINE, "facts": facts})
    with pytest.raises(InvalidGradedAnswer, match=r":1: facts: "):
        list(read_plain(path))


@pytest.mark.parametrize("read", [explained_answers, read_graded, read_plain])
def test_a_set_that_is_not_there_is_named(tmp_path: Path, read: Callable[[Path], Iterable[object]]) -> None:
    path = tmp_path / "missing.jsonl"
    with pytest.raises(InvalidGradedAnswer, match=r"missing\.jsonl: can't be read"):
        list(read(path))


def test_a_question_makes_a_right_answer_and_one_that_is_right_elsewhere(tmp_path: Path) -> None:
    answers = list(explained_answers(write(tmp_path, LINE, OTHER)))
    assert [(answer.answer, answer.label) for answer in answers[:2]] == [
        (LINE["hypothesis"], CORRECT),
        (OTHER["hypothesis"], INCORRECT),
    ]


def test_the_grader_learns_from_every_answer_that_a_lesson_gives_with_a_right_one() -> None:
    lessons = [lesson for lesson in load_lessons() if lesson.kind in {Kind.FEEDBACK, Kind.ASSESS}]
    expected = [
        question_and_answer(lesson)
        for lesson in lessons
        if question_and_answer(lesson)[1] and lesson.assessment and lesson.assessment.reference_answer
    ]
    assert len(expected) > 500
    assert [(answer.question, answer.answer) for answer in graded_lessons(lessons)] == expected
