"""The written replies to what is no school work: in the form of every profile, and judging nothing."""

import pytest

from cloning_server.examples.retention import RETAINED_REPLIES, retained_examples, retained_reply
from mesh.lm.chat import Prompt, Role, Turn, encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.judgement import judges
from mesh.tutoring.profile import GRADES, Disability, LearningStyle, StudentProfile
from mesh.tutoring.teaching import rules_of
from testing.lessons import PROFILE


@pytest.mark.parametrize("grade", [*GRADES, None])
@pytest.mark.parametrize("need", [None, *Disability])
def test_a_written_reply_keeps_the_form_of_every_profile_and_judges_nothing(
    grade: str | None, need: Disability | None
) -> None:
    for style in (None, *LearningStyle):
        profile = StudentProfile(grade=grade, disability=need, learning_style=style)
        for _, sentences in RETAINED_REPLIES:
            reply = retained_reply(sentences, profile)
            assert rules_of(profile).violations(reply) == [], reply
            assert not judges(reply), reply
            assert all(sentence in reply for sentence in sentences)


def test_whoever_is_in_danger_is_sent_to_an_adult() -> None:
    (sentences,) = [sentences for text, sentences in RETAINED_REPLIES if "hurt myself" in text]
    assert any("grown-up you trust" in sentence for sentence in sentences)


def test_an_example_has_the_prompt_that_serving_renders(base: BaseModel) -> None:
    examples = retained_examples(PROFILE, base.tokenizer)
    for (text, sentences), example in zip(RETAINED_REPLIES, examples, strict=True):
        prompt = Prompt(profile=PROFILE, turns=(Turn(role=Role.STUDENT, text=text),))
        assert list(example.tokens[: example.reply_start]) == encode_prompt(base.tokenizer, prompt)
        assert sentences[0] in str(base.tokenizer.decode(list(example.tokens[example.reply_start :])))
