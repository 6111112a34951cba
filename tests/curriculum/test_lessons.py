"""The lessons that the project wrote: enough of each kind, fair to every student, sound, and unlike each other."""

import itertools
import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from curriculum.lesson import Kind, Lesson, Subject, read_lessons
from curriculum.library import is_held_out, load_lessons
from curriculum.prompts import prompt_of, question_and_answer
from curriculum.records import InvalidLine
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.judgement import Judgement, contains_answer, judgement_in, judges
from mesh.tutoring.profile import GRADES, Disability, GradeBand, LearningStyle
from mesh.tutoring.reading_level import reading_grade
from tests.curriculum.lesson_checks import faults_of, near_duplicates, repeats_of

QUOTAS = {Kind.EXPLAIN: 900, Kind.FEEDBACK: 700, Kind.HINT: 400, Kind.FEELINGS: 250, Kind.BOUNDARIES: 250}
WORKED = 500
# In every subject and band, and for every disability and every learning style in every band.
LEAST = {Kind.EXPLAIN: 55, Kind.FEEDBACK: 44, Kind.HINT: 25, Kind.FEELINGS: 15, Kind.BOUNDARIES: 15}
LEAST_PER_DISABILITY = 65
LEAST_PER_STYLE = 45
# Of feedback lessons. Blank and off-topic answers need fewer words to be understood.
VERDICT_SHARES = {
    AnswerVerdict.CORRECT: 0.3,
    AnswerVerdict.INCORRECT: 0.3,
    AnswerVerdict.PARTIALLY_CORRECT: 0.15,
    AnswerVerdict.BLANK: 0.05,
    AnswerVerdict.OFF_TOPIC: 0.05,
}
# Grades that the mean reading level rises from one band to the next, over all subjects.
LEAST_RISE = 1.5
# Lessons about a subject's matter; feelings and boundaries have standards of their own.
MATTER = frozenset({Kind.EXPLAIN, Kind.FEEDBACK, Kind.HINT, Kind.ASSESS, Kind.WORKED})
# The grade or grades that a code names: CCSS.MATH.CONTENT.5.NF.A.1, CCSS.ELA-LITERACY.RL.9-10.2, NGSS.MS-PS2-1.
GRADES_IN_CODE = re.compile(
    r"^(?:CCSS\.MATH\.CONTENT\.(K|\d|HS)[A-Z-]*\.|CCSS\.ELA-LITERACY\.[A-Z]+\.(K|\d+-\d+|\d+)\.|NGSS\.(K|\d|MS|HS)-"
    r"|C3\.D\d\.[A-Za-z]+\.\d+\.(K-2|3-5|6-8|9-12))"
)
OF_BAND = {band: [grade for grade in GRADES if GradeBand.of(grade) is band] for band in GradeBand}
OF_CODE = {
    "HS": OF_BAND[GradeBand.G9_12],
    "MS": OF_BAND[GradeBand.G6_8],
    "9-10": ["9", "10"],
    "11-12": ["11", "12"],
    **{str(band): grades for band, grades in OF_BAND.items()},
}
STATED = {
    AnswerVerdict.CORRECT: {Judgement.RIGHT},
    AnswerVerdict.PARTIALLY_CORRECT: {Judgement.PARTLY_RIGHT},
    AnswerVerdict.INCORRECT: {Judgement.WRONG},
    AnswerVerdict.BLANK: {Judgement.NONE, Judgement.WRONG},
    AnswerVerdict.OFF_TOPIC: {Judgement.NONE, Judgement.WRONG},
}
LINE = {
    "id": "explain-science-3-5-1",
    "kind": "explain",
    "band": "3-5",
    "subject": "science",
    "standard": "NGSS.3-PS2-1",
    "profile": {"grade": "4"},
    "turns": ["Why does a ball fall?"],
    "reply": "Earth pulls it down.",
}


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    return load_lessons()


@pytest.fixture(scope="module")
def taught(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons whose replies are prose of the tutor's own: neither computed nor JSON."""
    return [lesson for lesson in lessons if lesson.kind not in {Kind.WORKED, Kind.ASSESS}]


@pytest.mark.parametrize("kind", QUOTAS)
def test_there_are_enough_lessons_of_a_kind_in_every_subject_and_band(lessons: Sequence[Lesson], kind: Kind) -> None:
    counts = Counter((lesson.subject, lesson.band) for lesson in lessons if lesson.kind is kind)
    assert counts.total() >= QUOTAS[kind]
    scarce = [(subject, band) for subject in Subject for band in GradeBand if counts[subject, band] < LEAST[kind]]
    assert not scarce


def test_there_are_enough_worked_lessons_in_every_band(lessons: Sequence[Lesson]) -> None:
    counts = Counter(lesson.band for lesson in lessons if lesson.kind is Kind.WORKED)
    assert counts.total() >= WORKED
    assert min(counts[band] for band in GradeBand) >= WORKED / 5


@pytest.mark.parametrize("band", GradeBand)
def test_every_disability_and_learning_style_is_taught_in_every_band(
    lessons: Sequence[Lesson], band: GradeBand
) -> None:
    profiles = [lesson.profile for lesson in lessons if lesson.band is band]
    disabilities = Counter(profile.disability for profile in profiles)
    styles = Counter(profile.learning_style for profile in profiles)
    assert not [disability for disability in Disability if disabilities[disability] < LEAST_PER_DISABILITY]
    assert not [style for style in LearningStyle if styles[style] < LEAST_PER_STYLE]


def test_feedback_is_given_on_right_partly_right_wrong_blank_and_off_topic_answers(lessons: Sequence[Lesson]) -> None:
    verdicts = Counter(
        lesson.assessment.verdict for lesson in lessons if lesson.kind is Kind.FEEDBACK and lesson.assessment
    )
    assert not [verdict for verdict, share in VERDICT_SHARES.items() if verdicts[verdict] < share * verdicts.total()]


def test_ids_are_unique_and_say_kind_subject_and_band(lessons: Sequence[Lesson]) -> None:
    counts = Counter(lesson.id for lesson in lessons)
    assert not [name for name, count in counts.items() if count > 1]
    strange = [
        lesson.id
        for lesson in lessons
        if not lesson.id.startswith(f"{lesson.kind}-{lesson.subject.replace(' ', '-')}-{lesson.band.lower()}-")
    ]
    assert not strange


def test_no_lesson_has_a_fault(lessons: Sequence[Lesson]) -> None:
    faults = {lesson.id: faults_of(lesson) for lesson in lessons}
    assert not {name: lines for name, lines in faults.items() if lines}


def test_no_sentence_and_no_skeleton_of_a_reply_is_repeated(lessons: Sequence[Lesson]) -> None:
    assert not list(repeats_of(lessons))


def test_no_two_lessons_say_nearly_the_same(lessons: Sequence[Lesson]) -> None:
    # A computed lesson is like others of its template on purpose.
    written = [lesson for lesson in lessons if lesson.kind is not Kind.WORKED]
    assert not [(one.id, other.id, round(share, 2)) for one, other, share in near_duplicates(written)]


@pytest.mark.parametrize("kind", QUOTAS)
def test_the_reading_level_rises_with_the_band(taught: Sequence[Lesson], kind: Kind) -> None:
    for subject in (None, *Subject):
        levels = [
            statistics.mean(
                reading_grade(lesson.reply)
                for lesson in taught
                if lesson.kind is kind and lesson.band is band and subject in {None, lesson.subject}
            )
            for band in GradeBand
        ]
        rises = [later - earlier for earlier, later in itertools.pairwise(levels)]
        assert min(rises) >= (LEAST_RISE if subject is None else 0.5), (kind, subject, levels)


def test_no_hint_says_the_answer(lessons: Sequence[Lesson]) -> None:
    hints = [lesson for lesson in lessons if lesson.kind is Kind.HINT]
    assert all(lesson.withheld for lesson in hints)
    leaks = [lesson.id for lesson in hints if any(contains_answer(lesson.reply, word) for word in lesson.withheld)]
    assert not leaks


def test_no_feedback_on_a_wrong_answer_says_the_right_one(lessons: Sequence[Lesson]) -> None:
    leaks = [
        lesson.id
        for lesson in lessons
        if lesson.kind in {Kind.FEEDBACK, Kind.ASSESS}
        and lesson.assessment
        and lesson.assessment.verdict is AnswerVerdict.INCORRECT
        and contains_answer(" ".join(lesson.texts), lesson.assessment.reference_answer)
    ]
    assert not leaks


def test_standards_are_codes_of_the_subjects_own_set(lessons: Sequence[Lesson]) -> None:
    kinds = Counter((lesson.subject, lesson.standard.split(".")[0]) for lesson in lessons if lesson.kind in MATTER)
    assert set(kinds) == {
        (Subject.MATHEMATICS, "CCSS"),
        (Subject.READING_AND_WRITING, "CCSS"),
        (Subject.SCIENCE, "NGSS"),
        (Subject.SOCIAL_STUDIES, "C3"),
    }


def test_a_standard_is_of_a_grade_in_the_lessons_band(lessons: Sequence[Lesson]) -> None:
    strange = [
        (lesson.id, lesson.standard)
        for lesson in lessons
        for match in GRADES_IN_CODE.finditer(lesson.standard)
        for grade in filter(None, match.groups())
        if not set(OF_CODE.get(grade, [grade])) & set(OF_BAND[lesson.band])
    ]
    assert not strange


def test_the_checker_of_verdicts_agrees_with_the_verdict_that_feedback_was_told(lessons: Sequence[Lesson]) -> None:
    told = [
        (lesson, lesson.assessment.verdict) for lesson in lessons if lesson.kind is Kind.FEEDBACK and lesson.assessment
    ]
    agreed = sum(judgement_in(lesson.reply) in STATED[verdict] for lesson, verdict in told)
    assert agreed >= 0.97 * len(told)


def test_the_checker_of_judging_is_silent_where_nothing_is_judged(lessons: Sequence[Lesson]) -> None:
    for kind in (Kind.EXPLAIN, Kind.HINT):
        replies = [lesson.reply for lesson in lessons if lesson.kind is kind and lesson.assessment is None]
        assert sum(map(judges, replies)) <= 0.01 * len(replies)


def test_the_checker_of_verdicts_hears_hardly_any_praise_where_nothing_was_answered(lessons: Sequence[Lesson]) -> None:
    praise = {Judgement.RIGHT, Judgement.PARTLY_RIGHT}
    replies = [lesson.reply for lesson in lessons if lesson.kind in {Kind.EXPLAIN, Kind.HINT} and not lesson.assessment]
    assert sum(judgement_in(reply) in praise for reply in replies) <= 0.04 * len(replies)


def test_the_checker_of_judging_hears_most_verdicts(lessons: Sequence[Lesson]) -> None:
    verdicts = {AnswerVerdict.CORRECT, AnswerVerdict.PARTIALLY_CORRECT, AnswerVerdict.INCORRECT}
    replies = [
        lesson.reply
        for lesson in lessons
        if lesson.kind is Kind.FEEDBACK and lesson.assessment and lesson.assessment.verdict in verdicts
    ]
    # The others confirm with "Yes" alone, which explanations say too, or say what is so.
    assert sum(map(judges, replies)) >= 0.65 * len(replies)


def test_about_a_twelfth_of_every_kind_is_held_out(lessons: Sequence[Lesson]) -> None:
    for kind in QUOTAS:
        members = [lesson for lesson in lessons if lesson.kind is kind]
        assert 0.05 <= sum(map(is_held_out, members)) / len(members) <= 0.12


def test_the_prompt_of_a_lesson_tells_its_verdict_and_keeps_its_turns(lessons: Sequence[Lesson]) -> None:
    for lesson in lessons:
        prompt = prompt_of(lesson)
        assert (prompt.assessment and prompt.assessment.verdict) == (lesson.assessment and lesson.assessment.verdict)
        if lesson.kind is Kind.ASSESS:
            question, answer = question_and_answer(lesson)
            assert f"Question: {' '.join(question.split())}" in prompt.turns[-1].text
            assert f"Student's answer: {' '.join(answer.split())}" in prompt.turns[-1].text
        else:
            assert [turn.text for turn in prompt.turns] == list(lesson.turns)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "joke"}, "kind"),
        ({"profile": {"grade": "13"}}, "profile.grade"),
        ({"profile": {"grade": "7"}}, "band"),
        ({"standard": "About forces"}, "standard"),
        ({"turns": []}, "turns"),
        ({"turns": ["Why?", "Because."]}, "turns"),
        ({"reply": "  "}, "reply"),
        ({"kind": "feedback"}, "assessment"),
        ({"kind": "assess"}, "assessment"),
        ({"assessment": {"verdict": "correct"}}, "assessment"),
        ({"note": "x"}, "note"),
    ],
)
def test_a_faulty_line_names_file_line_and_field(tmp_path: Path, change: dict[str, object], field: str) -> None:
    path = tmp_path / "science.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps(LINE | change)}\n")
    with pytest.raises(InvalidLine) as caught:
        list(read_lessons(path))
    place, _, rest = str(caught.value).partition(": ")
    assert place == f"{path}:2"
    assert field in rest


def test_a_line_that_is_not_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "science.jsonl"
    path.write_text("{\n")
    with pytest.raises(InvalidLine, match=r"science\.jsonl:1: "):
        list(read_lessons(path))


def test_a_line_that_is_not_utf_8_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "science.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\xff\xfe\n")
    with pytest.raises(InvalidLine, match=r"science\.jsonl:2: "):
        list(read_lessons(path))


def test_an_id_that_occurs_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "science.jsonl").write_text(f"{json.dumps(LINE)}\n{json.dumps(LINE)}\n")
    with pytest.raises(InvalidLine, match="id: explain-science-3-5-1 occurs twice"):
        load_lessons(tmp_path)
