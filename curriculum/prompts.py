"""The prompt of a lesson: what serving gives the model for the same student and the same words."""

from curriculum.lesson import Kind, Lesson
from mesh.lm.chat import Prompt, Role, Turn
from mesh.lm.feedback import feedback_prompt
from mesh.tutoring.arithmetic import compute
from mesh.tutoring.assessment import AnswerAssessment
from mesh.tutoring.criteria import Criteria

_MARK = "\n\nMy answer: "


def prompt_of(lesson: Lesson) -> Prompt:
    """Returns the prompt of a lesson, as serving renders it for a student with this profile."""
    assessment = _assessment_of(lesson)
    if lesson.kind is Kind.ASSESS and assessment:
        question, answer = question_and_answer(lesson)
        criteria = Criteria(
            grade=lesson.profile.grade,
            subject=lesson.student.subject,
            question=question,
            reference_answer=assessment.reference_answer,
        )
        return feedback_prompt(answer, criteria, assessment=assessment, profile=lesson.student)
    roles = (Role.STUDENT, Role.TUTOR)
    turns = tuple(Turn(role=roles[index % 2], text=text) for index, text in enumerate(lesson.turns))
    facts = lesson.facts or compute(lesson.turns[-1]).facts
    return Prompt(profile=lesson.student, turns=turns, assessment=assessment, facts=facts)


def is_told_by_code(lesson: Lesson) -> bool:
    """Whether code would judge an answer of which the lesson tells nothing, so that serving never meets this prompt."""
    return lesson.assessment is None and compute(lesson.turns[-1]).assessment is not None


def question_and_answer(lesson: Lesson) -> tuple[str, str]:
    """Returns the question of a lesson's last turn, and the answer that stands below it; empty if there is none."""
    question, _, answer = lesson.turns[-1].partition(_MARK)
    return question, answer


def _assessment_of(lesson: Lesson) -> AnswerAssessment | None:
    if lesson.assessment is None:
        return None
    return AnswerAssessment(verdict=lesson.assessment.verdict, reference_answer=lesson.assessment.reference_answer)
