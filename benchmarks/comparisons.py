"""Whom the personalization benchmark compares: students, their classmates, and strangers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.students import BenchmarkStudent, common_questions
from cloning_server.clone import Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The student to score, and the students whose answers train the rival adapters.

    Attributes:
        student: The student to score.
        classmate: A student who answered the same questions. Both adapters are trained on these questions only, so
            neither is trained on a held-out one.
        stranger: A student with another profile; None if there is none.
    """

    student: BenchmarkStudent
    classmate: BenchmarkStudent
    stranger: BenchmarkStudent | None

    def own_baseline(self, responses: int | None) -> Baseline:
        """Returns the student's answers to the first `responses` common questions, or to all of them."""
        return self._baseline(self.student, responses)

    def classmate_baseline(self, responses: int | None) -> Baseline:
        """Returns the classmate's answers to the same questions, with the student's profile."""
        return self._baseline(self.classmate, responses)

    def _baseline(self, author: BenchmarkStudent, responses: int | None) -> Baseline:
        questions = common_questions(self.student, self.classmate)[:responses]
        return replace(
            self.student.baseline,
            responses=author.answers_to(questions),
            interests=author.baseline.interests,
            assessment_id="",
            overall_score=None,
            max_score=author.baseline.max_score,
        )


def chosen_students(students: Sequence[BenchmarkStudent], *, pairs: int | None, alike: bool) -> list[BenchmarkStudent]:
    """Returns the students to measure.

    Args:
        students: All students of the folder.
        pairs: Most pairs of classmates; None for all students.
        alike: Whether to leave out students without a classmate of the same profile.
    """
    if pairs is not None:
        return [student for pair in list(_pairs_of(students))[:pairs] for student in pair]
    if not alike:
        return list(students)
    # Sorted by profile, so that the first few students include the classmates of each other.
    with_classmate = [student for student in students if _alike(student, students)]
    return sorted(with_classmate, key=lambda student: (repr(student.baseline.profile), student.student_id))


def compare_all(students: Sequence[BenchmarkStudent], *, seed: int) -> dict[str, Comparison]:
    """Returns a comparison per student.

    The classmate is the one whom the files name. Otherwise both rivals are drawn, and the classmate has the same
    profile if any student has.
    """
    comparisons = {}
    for student in students:
        draws = random.Random(f"{seed} {student.student_id}")
        others = [candidate for candidate in students if candidate is not student]
        same_profile = _alike(student, students)
        other_profile = [candidate for candidate in others if candidate not in same_profile]
        named = [candidate for candidate in others if candidate.student_id == student.classmate_id]
        comparisons[student.student_id] = Comparison(
            student=student,
            classmate=draws.choice(named or same_profile or others),
            stranger=draws.choice(other_profile) if other_profile else None,
        )
    return comparisons


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One of several equal shares of the students, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Reads `3/8`.

        Raises:
            ValueError: It is no such share.
        """
        number, count = (int(part) for part in text.split("/"))
        if not 1 <= number <= count:
            raise ValueError(f"{text} is no share: write 3/8 for the third of eight")
        return cls(number=number, count=count)

    @property
    def file_suffix(self) -> str:
        """The part of a file name that names the share, such as `.3`; empty if there is only one."""
        return f".{self.number}" if self.count > 1 else ""

    def of(self, comparisons: Sequence[Comparison]) -> Sequence[Comparison]:
        """Returns the comparisons of this share."""
        return comparisons[self.number - 1 :: self.count]


def _pairs_of(students: Sequence[BenchmarkStudent]) -> Iterator[tuple[BenchmarkStudent, BenchmarkStudent]]:
    """Yields the pairs of classmates whom the files name."""
    by_id = {student.student_id: student for student in students}
    for student in students:
        classmate = by_id.get(student.classmate_id)
        if classmate and student.student_id < classmate.student_id:
            yield student, classmate


def _alike(student: BenchmarkStudent, students: Sequence[BenchmarkStudent]) -> list[BenchmarkStudent]:
    """The other students with the student's profile."""
    profile = student.baseline.profile
    return [other for other in students if other is not student and other.baseline.profile == profile]
