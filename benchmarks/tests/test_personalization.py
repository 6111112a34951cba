"""The comparisons of the personalization benchmark, and their intervals."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.adapter_trainer import Scores
from benchmarks.bootstrap import interval_of_mean
from benchmarks.comparisons import Share, chosen_students, compare_all
from benchmarks.personalization_figures import advantage
from benchmarks.replies import FileReplyCache
from benchmarks.students import BenchmarkStudent, read_students

QUESTIONS = [f"What is {n} + {n}?" for n in range(9)]


def write_student(folder: Path, name: str, *, grade: str, questions: Sequence[str], classmate: str = "") -> None:
    """Writes the files of a student who answers some questions; the others are held out."""
    answers = {
        question: {"question": question, "student_answer": f"{name} on {question}", "is_correct": True}
        for question in QUESTIONS
    }
    body = {
        "student_id": name,
        "student_profile": {"name": "Somebody", "grade": grade},
        "baseline_data": {"responses": [answers[question] for question in questions]},
    }
    heldout = {
        "student_id": name,
        "mastered_skills": ["adding"],
        "classmate": classmate,
        "interests": [f"{name}'s hobby"],
        "responses": [answer for question, answer in answers.items() if question not in questions],
    }
    (folder / f"{name}.json").write_text(json.dumps(body))
    (folder / f"{name}.heldout.json").write_text(json.dumps(heldout))


@pytest.fixture
def students(tmp_path: Path) -> list[BenchmarkStudent]:
    write_student(tmp_path, "ada", grade="5", questions=QUESTIONS[:6])
    write_student(tmp_path, "bo", grade="6", questions=QUESTIONS[1:7])
    write_student(tmp_path, "cleo", grade="5", questions=QUESTIONS[2:7])
    (tmp_path / "without.json").write_text((tmp_path / "ada.json").read_text())
    return read_students(tmp_path)


def test_students_with_held_out_answers_are_read(students: list[BenchmarkStudent]) -> None:
    assert [student.student_id for student in students] == ["ada", "bo", "cleo"]
    assert [len(student.heldout) for student in students] == [3, 3, 4]


def test_own_and_classmates_adapter_learn_the_same_questions_and_none_that_is_held_out(
    students: list[BenchmarkStudent],
) -> None:
    for comparison in compare_all(students, seed=3).values():
        own, classmate = comparison.own_baseline(4), comparison.classmate_baseline(4)
        questions = [response.question for response in own.responses]
        assert questions == [response.question for response in classmate.responses]
        assert len(questions) >= 3
        assert not set(questions) & {response.question for response in comparison.student.heldout}
        assert own.profile == classmate.profile == comparison.student.baseline.profile
        assert all(response.student_answer.startswith(comparison.student.student_id) for response in own.responses)
        assert all(
            response.student_answer.startswith(comparison.classmate.student_id) for response in classmate.responses
        )


def test_a_classmate_of_the_same_profile_comes_first_and_a_stranger_has_another(
    students: list[BenchmarkStudent],
) -> None:
    comparisons = compare_all(students, seed=3)
    assert (comparisons["ada"].classmate.student_id, comparisons["cleo"].classmate.student_id) == ("cleo", "ada")
    # One adapter per student is enough: it is the student's own, and the classmate's rival.
    assert comparisons["ada"].classmate_baseline(4) == comparisons["cleo"].own_baseline(4)
    for comparison in comparisons.values():
        assert comparison.stranger is not None
        assert comparison.stranger.baseline.profile != comparison.student.baseline.profile


def test_who_is_compared_is_the_same_for_the_same_seed(students: list[BenchmarkStudent]) -> None:
    assert compare_all(students, seed=5) == compare_all(students, seed=5)


def test_an_interval_holds_the_mean_and_narrows_with_more_pairs() -> None:
    few, many = (interval_of_mean([0.1, 0.3] * count, seed=1) for count in (5, 500))
    assert [few.value, many.value] == pytest.approx([0.2, 0.2])
    assert few.low < many.low < 0.2 < many.high < few.high


def test_an_advantage_counts_tokens_not_items() -> None:
    own, other = Scores(nats=(1.0, 10.0), tokens=(1, 9)), Scores(nats=(2.0, 10.0), tokens=(1, 9))
    assert advantage(own, other, seed=0).value == pytest.approx(0.1)


def test_a_named_classmate_comes_first_and_pairs_stay_together(tmp_path: Path) -> None:
    for name, classmate in (("ada", "dev"), ("bo", "cleo"), ("cleo", "bo"), ("dev", "ada")):
        write_student(tmp_path, name, grade="5", questions=QUESTIONS[:6], classmate=classmate)
    everybody = read_students(tmp_path)
    comparisons = compare_all(everybody, seed=0)
    assert {name: comparison.classmate.student_id for name, comparison in comparisons.items()} == {
        "ada": "dev", "bo": "cleo", "cleo": "bo", "dev": "ada",
    }  # fmt: skip
    assert [student.student_id for student in chosen_students(everybody, pairs=1, alike=False)] == ["ada", "dev"]


def test_interests_belong_to_whoever_answered(tmp_path: Path) -> None:
    for name, classmate in (("ada", "bo"), ("bo", "ada")):
        write_student(tmp_path, name, grade="5", questions=QUESTIONS[:6], classmate=classmate)
    comparison = compare_all(read_students(tmp_path), seed=0)["ada"]
    assert comparison.own_baseline(None).interests == ("ada's hobby",)
    assert comparison.classmate_baseline(None).interests == ("bo's hobby",)
    assert len(comparison.own_baseline(None).responses) == 6


def test_shares_hold_each_student_once(students: list[BenchmarkStudent]) -> None:
    comparisons = list(compare_all(students, seed=3).values())
    shares = [Share.parse(f"{number}/2").of(comparisons) for number in (1, 2)]
    assert sorted(item.student.student_id for share in shares for item in share) == ["ada", "bo", "cleo"]
    assert list(Share().of(comparisons)) == comparisons


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Share.parse(text)


def test_what_processes_side_by_side_stored_is_read_by_the_next(tmp_path: Path) -> None:
    FileReplyCache(tmp_path / "decoded.1.json").put_many({"a": "x"})
    FileReplyCache(tmp_path / "decoded.2.json").put_many({"b": "y"})
    assert FileReplyCache(tmp_path / "decoded.json").get_many(["a", "b", "c"]) == {"a": "x", "b": "y"}
