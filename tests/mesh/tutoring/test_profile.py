import pytest

from mesh.tutoring.profile import Disability, LearningStyle, StudentProfile, parse_profile


def test_a_profile_is_read_whatever_the_case_and_blank_space() -> None:
    assert parse_profile(grade=" k ", subject="  Life \n Science", learning_style="Visual", disability="ADHD") == (
        StudentProfile(
            grade="K", subject="Life Science", learning_style=LearningStyle.VISUAL, disability=Disability.ADHD
        )
    )


def test_empty_words_mean_not_known() -> None:
    assert parse_profile() == StudentProfile()


@pytest.mark.parametrize("word", [{"grade": "13"}, {"learning_style": "osmosis"}, {"disability": "none"}])
def test_a_word_that_is_not_accepted_makes_no_profile(word: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"grade|osmosis|none"):
        parse_profile(**word)
