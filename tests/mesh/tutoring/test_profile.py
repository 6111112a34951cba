import pytest

from mesh.errors import InvalidField
from mesh.tutoring.profile import MAX_SUBJECT_CHARACTERS, Disability, LearningStyle, StudentProfile, parse_profile


def test_a_profile_is_read_whatever_the_case_and_blank_space() -> None:
    assert parse_profile(grade=" k ", subject="  Life \n Science", learning_style="Visual", disability="ADHD") == (
        StudentProfile(
            grade="K", subject="Life Science", learning_style=LearningStyle.VISUAL, disability=Disability.ADHD
        )
    )


def test_empty_words_mean_not_known() -> None:
    assert parse_profile() == StudentProfile()


def test_all_faults_are_told_at_once_with_what_is_accepted() -> None:
    with pytest.raises(InvalidField) as refused:
        parse_profile(
            "context.",
            grade="13",
            learning_style="osmosis",
            disability="none",
            subject="x" * (MAX_SUBJECT_CHARACTERS + 1),
        )
    descriptions = {violation.field: violation.description for violation in refused.value.violations}
    assert set(descriptions) == {"context.grade", "context.learning_style", "context.disability", "context.subject"}
    assert "K, 1, 2" in descriptions["context.grade"]
    assert "kinesthetic" in descriptions["context.learning_style"]
    assert "adhd, autism, dyslexia, anxiety" in descriptions["context.disability"]
    assert "osmosis" not in str(refused.value)
