"""Cohorts: students of one grade, disability and learning style, whose common adapter a new student may start from.

A cohort's adapter is an ordinary published model, made by an ordinary clone, of an id that is kept for it (ADR 12).
Knows nothing of training.
"""

from mesh.tutoring.profile import StudentProfile

# Where a part of the profile is not known or not there.
_NONE = "none"


def cohort_of(profile: StudentProfile, *, prefix: str) -> str:
    """The id of the student's cohort, such as `cohort-5-adhd-visual`; a subject is not part of it."""
    parts = (profile.grade, profile.disability, profile.learning_style)
    return "-".join((prefix, *(str(part or _NONE) for part in parts)))


def is_cohort(student_id: str, *, prefix: str) -> bool:
    """Whether an id is kept for a cohort."""
    return student_id.startswith(f"{prefix}-")
