"""What a clone is told beside its baseline: explanations in every student's form and manner, which judge nothing."""

from dataclasses import replace

import pytest

from cloning_server.examples.common_questions import COMMON_QUESTIONS, common_briefs, common_examples
from cloning_server.examples.framing import frame_reply
from mesh.lm.chat import encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.judgement import judges
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, WritingLevel
from mesh.tutoring.profile import GRADES, Disability, StudentProfile
from mesh.tutoring.teaching import rules_of
from testing.lessons import PROFILE
from testing.policy import POLICY

MOST_TOLD = replace(
    POLICY,
    writing=replace(POLICY.writing, level=WritingLevel.ABOVE),
    mistakes=replace(POLICY.mistakes, kind=MistakeKind.REVERSED),
    guidance=replace(POLICY.guidance, level=GuidanceLevel.MUCH),
    interests=("model trains",),
)


@pytest.mark.parametrize("grade", [*GRADES, None])
@pytest.mark.parametrize("need", [None, *Disability])
def test_an_explanation_keeps_the_form_of_every_profile_and_judges_nothing(
    grade: str | None, need: Disability | None
) -> None:
    profile = StudentProfile(grade=grade, disability=need)
    for brief in (*common_briefs(profile, POLICY), *common_briefs(profile, MOST_TOLD)):
        reply = frame_reply(brief, [brief.reference])
        assert rules_of(brief.profile).violations(reply) == [], reply
        assert not judges(reply), reply
        assert brief.reference in reply


def test_subjects_take_turns_so_that_a_few_questions_are_of_all_kinds() -> None:
    briefs = common_briefs(PROFILE, POLICY)
    assert [brief.profile.subject for brief in briefs[: len(COMMON_QUESTIONS)]] == list(COMMON_QUESTIONS)
    assert len(briefs) == sum(map(len, COMMON_QUESTIONS.values()))


def test_an_example_has_the_prompt_that_serving_renders(base: BaseModel) -> None:
    briefs = common_briefs(PROFILE, POLICY)
    for brief, example in zip(briefs, common_examples(PROFILE, POLICY, base.tokenizer), strict=True):
        assert list(example.tokens[: example.reply_start]) == encode_prompt(base.tokenizer, brief.prompt)
        assert brief.reference in str(base.tokenizer.decode(list(example.tokens[example.reply_start :])))
