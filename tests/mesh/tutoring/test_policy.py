"""What teachers are told of a teaching policy."""

from dataclasses import replace

import pytest

from mesh.tutoring.policy import (
    Guidance,
    GuidanceLevel,
    MistakeKind,
    Scaffold,
    Scaffolding,
    SkillSupport,
    WritingLevel,
    describe,
    habit_against,
)
from testing.policy import FEW_MISTAKES, POLICY, SHORT_WRITING


def support(
    skill: str, scaffold: Scaffold, *, subject: str = "Science", correct: int = 1, judged: int = 4
) -> SkillSupport:
    return SkillSupport(subject=subject, skill=skill, scaffold=scaffold, correct=correct, judged=judged)


def support_told(*skills: SkillSupport) -> str:
    return describe(replace(POLICY, scaffolding=Scaffolding(judged=12, skills=skills)))[1]


def test_writing_is_told_with_its_lengths() -> None:
    writing, *_ = describe(POLICY)
    assert writing == (
        "Writes short answers for grade 4: 6 words on average over 24 answers, 6 per sentence; about 13 are usual."
    )


def test_few_answers_and_an_unknown_grade_are_told_apart() -> None:
    unknown = replace(SHORT_WRITING, level=WritingLevel.UNKNOWN, grade="")
    assert describe(replace(POLICY, writing=unknown))[0] == "Writing: the grade is not known."
    sentence = describe(replace(POLICY, writing=replace(unknown, answers=5)))[0]
    assert sentence == "Writing: not enough answers (5 in words, 6 are needed)."


def test_skills_are_told_by_the_support_that_they_need() -> None:
    skills = (
        support("motion", Scaffold.EXTENSION),
        support("plants", Scaffold.RECAP),
        support("sound", Scaffold.RECAP),
    )
    sentence = describe(replace(POLICY, scaffolding=Scaffolding(judged=12, skills=skills)))[1]
    assert sentence == (
        "Needs a recap and small steps in plants (1 of 4 right) and sound (1 of 4 right); "
        "is ready for more in motion (1 of 4 right)."
    )


def test_many_skills_are_told_by_the_first_and_a_number() -> None:
    skills = tuple(support(f"skill {number}", Scaffold.STEADY) for number in range(9))
    sentence = describe(replace(POLICY, scaffolding=Scaffolding(judged=36, skills=skills)))[1]
    assert sentence.startswith("Goes on steadily in skill 0 (1 of 4 right), ")
    assert sentence.endswith(" and 4 more.")


def test_the_subject_is_told_where_two_have_a_skill_of_one_name() -> None:
    sentence = support_told(
        support("graphs", Scaffold.RECAP, subject="Math"),
        support("graphs", Scaffold.EXTENSION),
        support("sound", Scaffold.RECAP),
    )
    assert sentence == (
        "Needs a recap and small steps in graphs (Math: 1 of 4 right) and sound (1 of 4 right); "
        "is ready for more in graphs (Science: 1 of 4 right)."
    )


def test_a_short_record_is_told_as_too_few_answers() -> None:
    few = support("sound", Scaffold.STEADY, correct=0, judged=1)
    assert support_told(few) == "Too few answers yet in sound (0 of 1 right)."
    sentence = support_told(support("motion", Scaffold.STEADY, correct=2), few)
    assert sentence == "Goes on steadily in motion (2 of 4 right); too few answers yet in sound (0 of 1 right)."


def test_mistakes_are_told_with_the_habit_that_helps() -> None:
    assert describe(POLICY)[2] == "Has no usual kind of mistake: 2 of 24 answers are wrong."
    mistakes = replace(FEW_MISTAKES, kind=MistakeKind.REVERSED, wrong=9, reversed=6)
    assert describe(replace(POLICY, mistakes=mistakes))[2] == (
        "When wrong, answers often say the contrary of the right answer: 6 of 9; "
        "a habit that helps: say the answer back and check which way round it goes."
    )
    incomplete = replace(FEW_MISTAKES, kind=MistakeKind.INCOMPLETE, wrong=0, incomplete=8)
    assert describe(replace(POLICY, mistakes=incomplete))[2].startswith(
        "Often gives only a part of the right answer: 8 of 24 answers; a habit that helps: read the question again"
    )
    misspelt = replace(FEW_MISTAKES, kind=MistakeKind.MISSPELT, misspelt=7)
    assert "misspells a key word: 7 of 24 answers" in describe(replace(POLICY, mistakes=misspelt))[2]


@pytest.mark.parametrize("kind", list(MistakeKind))
def test_every_kind_of_mistake_has_a_habit_and_a_sentence(kind: MistakeKind) -> None:
    sentence = describe(replace(POLICY, mistakes=replace(FEW_MISTAKES, kind=kind)))[2]
    habit = habit_against(kind)
    assert bool(habit) is (kind not in {MistakeKind.UNKNOWN, MistakeKind.NONE})
    assert habit in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (5, "Guidance: not enough answers (5, 6 are needed)."),
        (8, "Guidance: asks for help in none of 8 answers; 12 are needed to call that seldom."),
    ],
)
def test_few_answers_and_no_request_are_told_apart(answers: int, sentence: str) -> None:
    guidance = Guidance(level=GuidanceLevel.UNKNOWN, answers=answers, requests=0)
    assert describe(replace(POLICY, guidance=guidance))[3] == sentence


def test_interests_are_told_as_a_list() -> None:
    assert describe(POLICY)[4] == "No interests are known."
    policy = replace(POLICY, interests=("cats", "trains", "rock climbing"))
    assert describe(policy)[4] == "Is interested in cats, trains and rock climbing."
