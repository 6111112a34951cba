import itertools

import pytest
from transformers import PreTrainedTokenizerBase

from mesh.tutoring.profile import GRADES, Disability, LearningStyle, StudentProfile
from mesh.tutoring.teaching import DISABILITIES, GRADE_BANDS, STYLES, accommodations_of, instruct, rules_of

# Read in every request, by a small model: longer instructions cost time and are not followed.
SYSTEM_PROMPT_TOKENS = 90

# For each disability, a reply that gives what it promises, and the same substance told as to anyone.
ACCOMMODATED = {
    Disability.ADHD: "1. Leaves take in light.\n2. They make sugar from air and water.\nWhat do leaves take in?",
    Disability.AUTISM: "1. The leaf takes in light.\n2. The leaf makes sugar.\nYou are done when you can name both.",
    Disability.DYSLEXIA: "Leaves take in light.\nThey use it to make food.\nThe food is sugar.",
    Disability.ANXIETY: "Take your time. One small step: name one thing that a plant needs.",
}
TOLD_AS_TO_ANYONE = {
    Disability.ADHD: "Leaves take in light and with it they make sugar from the air and from water, which feeds all.",
    Disability.AUTISM: "It is a piece of cake: leaves take in light and make sugar.",
    Disability.DYSLEXIA: "Photosynthesis transforms electromagnetic radiation into carbohydrates inside chloroplasts.",
    Disability.ANXIETY: "This is easy, so hurry: name the things that a plant needs.",
}


def test_every_value_of_a_profile_has_its_row() -> None:
    assert set(GRADE_BANDS) == set(GRADES)
    assert set(STYLES) == set(LearningStyle)
    assert set(DISABILITIES) == set(Disability)


@pytest.mark.parametrize("disability", Disability)
def test_an_accommodation_tells_a_reply_that_gives_it_from_one_that_does_not(disability: Disability) -> None:
    rules = rules_of(StudentProfile(grade="5", disability=disability))
    assert rules.violations(ACCOMMODATED[disability]) == []
    assert rules.violations(TOLD_AS_TO_ANYONE[disability])


@pytest.mark.parametrize("disability", Disability)
def test_every_instruction_of_an_accommodation_is_in_the_prompt(disability: Disability) -> None:
    profile = StudentProfile(grade="5", subject="Science", learning_style=LearningStyle.VISUAL, disability=disability)
    text = instruct(profile)
    assert all(sentence in text for row in accommodations_of(profile) for sentence in row.instructions)
    assert "grade 5" in text
    assert "Science" in text


def test_sentences_grow_with_the_grade() -> None:
    limits = [rules_of(StudentProfile(grade=grade)).max_sentence_words or 0 for grade in GRADES]
    assert limits == sorted(limits)
    assert limits[0] < limits[-1]


def test_the_prompt_tells_the_limit_that_the_rules_check() -> None:
    profile = StudentProfile(grade="11", disability=Disability.DYSLEXIA)
    assert f"under {rules_of(profile).max_sentence_words} words" in instruct(profile)


def test_a_profile_of_nothing_still_has_instructions_and_limits() -> None:
    assert "a student" in instruct(StudentProfile())
    assert rules_of(StudentProfile()).max_sentence_words


def test_no_profile_has_a_long_system_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    profiles = [
        StudentProfile(grade=grade, subject="Social Studies", learning_style=style, disability=disability)
        for grade, style, disability in itertools.product(GRADES, LearningStyle, Disability)
    ]
    assert max(len(tokenizer(instruct(profile))["input_ids"]) for profile in profiles) <= SYSTEM_PROMPT_TOKENS
