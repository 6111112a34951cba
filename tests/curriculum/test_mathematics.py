"""Worked lessons: enough of them, in form, and every number of a reply checked by code."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest

from curriculum.lesson import Kind, Lesson
from curriculum.library import load_lessons
from curriculum.mathematics import phrases, student_phrases, worked_lessons
from curriculum.mathematics.lessons import TEMPLATES
from mesh.tutoring.arithmetic import compute
from mesh.tutoring.arithmetic.chains import Chain, find_chains
from mesh.tutoring.arithmetic.equations import holds
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import split_sentences
from mesh.tutoring.judgement import Judgement, contains_answer, judgement_in, judges
from mesh.tutoring.profile import Disability, GradeBand, LearningStyle
from tests.curriculum.lesson_checks import faults_of, near_duplicates

NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
STEP_NUMBER = re.compile(r"^\d+\. ", re.MULTILINE)
# "5, 6, 7" after "count on 3 more".
COUNTED = re.compile(r"Count (?:on|back) [^:]*: ((?:\d+, )*\d+)\.")


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    return worked_lessons()


@pytest.fixture(scope="module")
def checks(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons in which a student offers an answer."""
    return [lesson for lesson in lessons if lesson.assessment]


def prose_of(lesson: Lesson) -> str:
    return STEP_NUMBER.sub("", lesson.reply)


def equations_in(text: str) -> list[Chain]:
    return [chain for chain in find_chains(text.lower()).chains if chain.is_equation]


def numbers_in(text: str) -> set[Fraction]:
    return set(map(Fraction, NUMBER.findall(text)))


def test_there_are_templates_and_lessons_enough_in_every_band(lessons: Sequence[Lesson]) -> None:
    assert len({template.name for template in TEMPLATES}) == len(TEMPLATES) >= 48
    assert len(lessons) >= 880
    bands = Counter(lesson.band for lesson in lessons)
    assert not [band for band in GradeBand if bands[band] < 180]


def test_half_of_the_offered_answers_are_right(checks: Sequence[Lesson]) -> None:
    verdicts = Counter(lesson.assessment.verdict for lesson in checks if lesson.assessment)
    assert len(checks) >= 370
    assert verdicts[AnswerVerdict.CORRECT] == verdicts[AnswerVerdict.INCORRECT] == len(checks) / 2


@pytest.mark.parametrize("band", GradeBand)
def test_every_disability_and_style_learns_in_every_band(lessons: Sequence[Lesson], band: GradeBand) -> None:
    profiles = [lesson.profile for lesson in lessons if lesson.band is band]
    disabilities = Counter(profile.disability for profile in profiles)
    styles = Counter(profile.learning_style for profile in profiles)
    assert not [disability for disability in Disability if disabilities[disability] < 20]
    assert not [style for style in LearningStyle if styles[style] < 20]


def test_the_same_seed_gives_the_same_lessons_and_another_gives_others(lessons: Sequence[Lesson]) -> None:
    assert worked_lessons() == list(lessons)
    assert worked_lessons(seed=1) != list(lessons)


def test_ids_and_turns_are_unique_and_the_library_has_them(lessons: Sequence[Lesson]) -> None:
    assert len({lesson.id for lesson in lessons}) == len(lessons)
    assert len({lesson.turns for lesson in lessons}) == len(lessons)
    assert [lesson for lesson in load_lessons() if lesson.kind is Kind.WORKED] == list(lessons)


def test_no_worked_lesson_has_a_fault(lessons: Sequence[Lesson]) -> None:
    faults = {lesson.id: faults_of(lesson) for lesson in lessons}
    assert not {name: lines for name, lines in faults.items() if lines}


def test_facts_and_verdicts_are_those_that_serving_computes(lessons: Sequence[Lesson]) -> None:
    for lesson in lessons:
        computation = compute(lesson.turns[-1])
        assert lesson.facts == computation.facts
        told = lesson.assessment and (lesson.assessment.verdict, lesson.assessment.reference_answer)
        computed = computation.assessment
        assert told == (computed and (computed.verdict, computed.reference_answer))


def test_every_equation_of_a_reply_is_true(lessons: Sequence[Lesson]) -> None:
    untrue = [
        (lesson.id, prose_of(lesson)[chain.start : chain.end])
        for lesson in lessons
        for chain in equations_in(prose_of(lesson))
        if holds(chain) is not True
    ]
    assert not untrue


def test_every_number_of_a_reply_stands_in_the_turn_or_in_a_true_equation(lessons: Sequence[Lesson]) -> None:
    unchecked = {}
    for lesson in lessons:
        prose = prose_of(lesson)
        checked = numbers_in(" ".join((*lesson.turns, *lesson.facts)))
        for chain in equations_in(prose):
            checked |= numbers_in(prose[chain.start : chain.end])
        for match in COUNTED.finditer(prose):
            counted = [int(number) for number in match[1].split(", ")]
            assert {abs(later - earlier) for earlier, later in itertools.pairwise(counted)} <= {1}
            checked |= set(map(Fraction, counted))
        unchecked[lesson.id] = numbers_in(prose) - checked
    assert not {name: numbers for name, numbers in unchecked.items() if numbers}


def test_an_explanation_says_the_result_and_judges_nothing(lessons: Sequence[Lesson]) -> None:
    for lesson in lessons:
        if lesson.assessment is None:
            assert not judges(lesson.reply)
            for fact in lesson.facts:
                # "53 ÷ 7 = 7 4/7 (7 remainder 4)": either notation.
                notations = re.split(r" = | \(", fact.rstrip(")"))[1:]
                assert any(contains_answer(lesson.reply, notation) for notation in notations), lesson.id


def test_the_first_sentence_says_whether_the_answer_is_right(checks: Sequence[Lesson]) -> None:
    for lesson in checks:
        assert lesson.assessment
        first = split_sentences(lesson.reply)[0]
        if lesson.assessment.verdict is AnswerVerdict.CORRECT:
            assert judgement_in(first) is Judgement.RIGHT, lesson.reply
        else:
            assert re.search(r"\b(?:not|wrong)\b", first), lesson.reply
            assert judgement_in(first) is not Judgement.RIGHT, lesson.reply


def test_no_reply_to_a_wrong_answer_says_the_right_one(checks: Sequence[Lesson]) -> None:
    for lesson in checks:
        assert lesson.assessment
        if lesson.assessment.verdict is AnswerVerdict.INCORRECT:
            assert lesson.withheld
            assert not any(contains_answer(lesson.reply, answer) for answer in lesson.withheld)
            # One step of the very computation leads on.
            assert len(split_sentences(lesson.reply)) >= 3


def test_pleas_do_not_change_a_verdict(checks: Sequence[Lesson]) -> None:
    plea = re.compile(r"rules|say yes|please say|always agrees|SYSTEM")
    pleas = [lesson for lesson in checks if plea.search(lesson.turns[-1])]
    verdicts = Counter(lesson.assessment.verdict for lesson in pleas if lesson.assessment)
    assert min(verdicts[AnswerVerdict.CORRECT], verdicts[AnswerVerdict.INCORRECT]) >= 20


def test_wordings_vary() -> None:
    assert min(map(len, (phrases.CONFIRMS, phrases.CORRECTS))) >= 25
    assert len(set(student_phrases.OFFERS) | set(student_phrases.PLEAS)) >= 30
    assert len(set(student_phrases.ASKS)) >= 16


def test_no_two_worked_lessons_say_nearly_the_same(lessons: Sequence[Lesson]) -> None:
    assert not [(first.id, second.id, share) for first, second, share in near_duplicates(lessons)]
