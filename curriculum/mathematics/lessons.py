"""Draws worked lessons: explanations with computed steps, and replies to answers that code has judged.

Facts and assessments come from the code that serves them, so that the tutor learns from the prompts that it will get.
"""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from typing import Literal

from pydantic import TypeAdapter

from curriculum.lesson import Kind, Lesson, LessonAssessment, LessonProfile, Subject
from curriculum.mathematics import (
    early_grades,
    early_stories,
    fractions_and_decimals,
    high_school,
    high_school_numbers,
    measurement,
    middle_grade_numbers,
    middle_grades,
    replies,
    student_phrases,
    upper_elementary,
)
from curriculum.mathematics.exercise import Exercise, Template
from curriculum.mathematics.replies import NoReply
from mesh.tutoring.arithmetic import compute
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.judgement import Judgement, contains_answer, judgement_in, judges
from mesh.tutoring.profile import Disability, GradeBand, LearningStyle

TEMPLATES: tuple[Template, ...] = (
    *early_grades.TEMPLATES,
    *early_stories.TEMPLATES,
    *upper_elementary.TEMPLATES,
    *measurement.TEMPLATES,
    *fractions_and_decimals.TEMPLATES,
    *middle_grade_numbers.TEMPLATES,
    *middle_grades.TEMPLATES,
    *high_school_numbers.TEMPLATES,
    *high_school.TEMPLATES,
)
_EXPLANATIONS_PER_TEMPLATE = 7
# Fewer templates of the upper grades are expressions that code computes, so that each has more lessons.
_CHECKS_PER_TEMPLATE = {GradeBand.K_2: 10, GradeBand.G3_5: 6, GradeBand.G6_8: 10, GradeBand.G9_12: 18}
# Pupils ask most about these, and a small model needs to see each fact: so many times as many checks.
_CHECK_FACTORS = {"multiply_facts": 14, "divide_facts": 5, "multiply_by_one_digit": 3}
# Together they make all combinations, as their numbers have no common divisor.
_NEEDS: tuple[Disability | Literal[""], ...] = (
    "", Disability.ADHD, "", Disability.AUTISM, Disability.DYSLEXIA, "", Disability.ANXIETY
)  # fmt: skip
_STYLES: tuple[LearningStyle | Literal[""], ...] = (
    "", LearningStyle.VISUAL, LearningStyle.STRUCTURED, LearningStyle.READING, "", LearningStyle.KINESTHETIC,
    LearningStyle.AUDITORY, "",
)  # fmt: skip
_PROFILE = TypeAdapter(LessonProfile)
# Draws of numbers and words until a lesson fits; more means that a template can't.
_TRIES = 500


def worked_lessons(*, seed: int = 2026) -> list[Lesson]:
    """Returns the worked lessons; the same seed gives the same ones.

    Raises:
        RuntimeError: A template has no words that fit a profile.
    """
    drafts = _Drafts(seed)
    lessons = [lesson for template in TEMPLATES for lesson in drafts.explanations(template)]
    lessons += [lesson for template in TEMPLATES if drafts.is_checkable(template) for lesson in drafts.checks(template)]
    return lessons


class _Drafts:
    """Draws lessons, numbered by band."""

    def __init__(self, seed: int) -> None:
        self._draw = Random(seed)  # noqa: S311 (lessons, no secrets)
        self._numbers = {band: count(1) for band in GradeBand}
        self._profiles = count()
        self._frames = count()
        self._turns: set[str] = set()
        self._steps: set[tuple[str, ...]] = set()

    def is_checkable(self, template: Template) -> bool:
        """Whether answers to its exercises can be judged by code."""
        return bool(template.build(self._draw).expression)

    def explanations(self, template: Template) -> Iterator[Lesson]:
        """Yields lessons in which a student asks how to do it."""
        for _ in range(_EXPLANATIONS_PER_TEMPLATE):
            profile, frame = self._profile(template), next(self._frames)
            yield self._first(template, lambda: self._explanation(template, profile, frame))  # noqa: B023 (called at once)

    def checks(self, template: Template) -> Iterator[Lesson]:
        """Yields lessons in which a student offers an answer, right and wrong in turn."""
        for index in range(_CHECKS_PER_TEMPLATE[template.band] * _CHECK_FACTORS.get(template.name, 1)):
            profile = self._profile(template)
            is_right, is_plea = index % 2 == 0, index // 2 % 3 == 2
            yield self._first(template, lambda: self._check(template, profile, is_right=is_right, is_plea=is_plea))  # noqa: B023

    def _profile(self, template: Template) -> LessonProfile:
        number = next(self._profiles)
        return _PROFILE.validate_python(
            {
                "grade": template.grades[number % len(template.grades)],
                "disability": _NEEDS[number % len(_NEEDS)],
                "learning_style": _STYLES[number % len(_STYLES)],
            }
        )

    def _first(self, template: Template, attempt: Callable[[], Lesson | None]) -> Lesson:
        for _ in range(_TRIES):
            lesson = attempt()
            if lesson is not None and lesson.turns[-1].lower() not in self._turns:
                self._turns.add(lesson.turns[-1].lower())
                return dataclasses.replace(
                    lesson, id=f"worked-mathematics-{template.band.lower()}-{next(self._numbers[template.band]):03d}"
                )
        raise RuntimeError(f"{template.name} has no lesson that fits")

    def _explanation(self, template: Template, profile: LessonProfile, frame: int) -> Lesson | None:
        exercise = template.build(self._draw)
        asks = exercise.questions or student_phrases.ASKS
        turn = asks[frame % len(asks)].format(e=exercise.expression) if exercise.expression else asks[frame % len(asks)]
        computation = compute(turn)
        if computation.assessment is not None or bool(computation.facts) != bool(exercise.expression):
            return None
        if exercise.steps in self._steps:
            return None
        draft = _lesson(template, profile, turn, facts=computation.facts)
        try:
            reply = replies.explain(exercise, topic=template.topic, student=draft.student, draw=self._draw)
        except NoReply:
            return None
        if judges(reply):
            return None
        self._steps.add(exercise.steps)
        return dataclasses.replace(draft, reply=reply)

    def _check(self, template: Template, profile: LessonProfile, *, is_right: bool, is_plea: bool) -> Lesson | None:
        exercise = template.build(self._draw)
        wrong = [mistake for mistake in exercise.mistakes if mistake != exercise.answer]
        claim = exercise.answer if is_right else self._draw.choice(wrong)
        frames = student_phrases.PLEAS if is_plea else student_phrases.OFFERS
        turn = self._draw.choice(frames).format(e=exercise.expression, c=claim)
        computation = compute(turn)
        verdict = AnswerVerdict.CORRECT if is_right else AnswerVerdict.INCORRECT
        if computation.assessment is None or computation.assessment.verdict is not verdict:
            return None
        draft = _lesson(
            template,
            profile,
            turn,
            facts=computation.facts,
            assessment=LessonAssessment(verdict=verdict, reference_answer=computation.assessment.reference_answer),
            withheld=() if is_right else (exercise.answer,),
        )
        try:
            reply = self._verdict_reply(exercise, claim, draft, is_plea=is_plea)
        except NoReply:
            return None
        expected = Judgement.RIGHT if is_right else Judgement.WRONG
        leaks = any(contains_answer(reply, answer) for answer in draft.withheld)
        return None if leaks or judgement_in(reply) is not expected else dataclasses.replace(draft, reply=reply)

    def _verdict_reply(self, exercise: Exercise, claim: str, draft: Lesson, *, is_plea: bool) -> str:
        if not draft.withheld:
            return replies.confirm(exercise, claim, student=draft.student, draw=self._draw)
        return replies.correct(exercise, claim, plea=is_plea, student=draft.student, draw=self._draw)


def _lesson(
    template: Template,
    profile: LessonProfile,
    turn: str,
    *,
    facts: tuple[str, ...],
    assessment: LessonAssessment | None = None,
    withheld: tuple[str, ...] = (),
) -> Lesson:
    """A lesson whose id and reply are still to come."""
    return Lesson(
        id="draft",
        kind=Kind.WORKED,
        band=template.band,
        subject=Subject.MATHEMATICS,
        standard=f"CCSS.MATH.CONTENT.{template.standard}",
        profile=profile,
        turns=(turn,),
        reply="draft",
        assessment=assessment,
        facts=facts,
        withheld=withheld,
    )
