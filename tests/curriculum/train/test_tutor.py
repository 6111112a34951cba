"""What an epoch of the tutor shows."""

from collections import Counter

from curriculum.lesson import Kind
from curriculum.library import load_lessons
from curriculum.train.tutor import lessons_of_epoch
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.profile import Disability


def test_an_epoch_shows_feedback_hints_and_anxious_students_twice_and_half_right_answers_once_more() -> None:
    lessons = load_lessons()
    times = Counter(lesson.id for lesson in lessons_of_epoch(lessons))
    for lesson in lessons:
        is_slow = lesson.kind in {Kind.FEEDBACK, Kind.HINT} or lesson.student.disability is Disability.ANXIETY
        is_half_right = lesson.assessment is not None and lesson.assessment.verdict is AnswerVerdict.PARTIALLY_CORRECT
        assert times[lesson.id] == 1 + is_slow + is_half_right
