import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.tutoring.form import FormRules, count_words, split_sentences

STEPS = "1. Plants take in light.\n2. They make sugar.\n\nWhat do plants need first?"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Plants eat light. They do! Do they?", ["Plants eat light.", "They do!", "Do they?"]),
        ("It is 3.5 m long. Dr. Lee said so, e.g. here.", ["It is 3.5 m long.", "Dr. Lee said so, e.g. here."]),
        ("1. First do this\n2) Then that\n- and this", ["First do this", "Then that", "and this"]),
        ("", []),
        ("...\n!!", []),
    ],
)
def test_sentences_are_split_at_their_ends_and_at_lines(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_a_number_and_a_hyphenated_word_count_as_one_word() -> None:
    assert count_words("It's a well-known 3,500 m hill.") == 6


@pytest.mark.parametrize(
    ("rules", "good_text", "broken"),
    [
        (FormRules(max_sentence_words=4), "Plants take in light.", "Plants take in the light."),
        (FormRules(max_sentences=2), "One. Two.", "One. Two. Three."),
        (FormRules(max_paragraph_sentences=1), "One.\nTwo.", "One. Two."),
        (FormRules(max_long_words=1), "Photosynthesis! Photosynthesis!", "Photosynthesis needs chlorophyll."),
        (FormRules(numbered_steps=True), STEPS, "First light. Then sugar."),
        (FormRules(ends_with_question=True), STEPS, "What is it? It is light."),
        (FormRules(avoids=("piece of cake",)), "A piece of bread.", "It is a Piece of Cake!"),
        (FormRules(avoids=("don't worry",)), "I don't know.", "Don\u2019t worry about it."),
        (FormRules(required_phrases=("no rush", "let's")), "There is no rush.", "Rush on, tablet's here."),
    ],
)
def test_each_rule_tells_a_reply_that_keeps_it_from_one_that_breaks_it(
    rules: FormRules, good_text: str, broken: str
) -> None:
    assert rules.violations(good_text) == []
    assert len(rules.violations(broken)) == 1


def test_an_empty_reply_breaks_any_rules() -> None:
    assert FormRules().violations(" \n ") == ["is empty"]


_rules = st.builds(
    FormRules,
    max_sentence_words=st.none() | st.integers(1, 9),
    max_sentences=st.none() | st.integers(1, 5),
    max_paragraph_sentences=st.none() | st.integers(1, 3),
    max_long_words=st.none() | st.integers(0, 3),
    numbered_steps=st.booleans(),
    ends_with_question=st.booleans(),
    avoids=st.sampled_from([(), ("light",), ("light", "one")]),
)
_replies = st.lists(
    st.sampled_from(["One light. ", "1. Photosynthesis needs chlorophyll\n", "2. Go\n", "Why?", "\n", "it is so "]),
    max_size=6,
).map("".join)


@given(rules=_rules, other=_rules, reply=_replies)
def test_combined_rules_hold_exactly_when_both_do(rules: FormRules, other: FormRules, reply: str) -> None:
    both = not rules.violations(reply) and not other.violations(reply)
    assert (not rules.combine(other).violations(reply)) == both


@given(rules=_rules, text=st.text())
def test_any_text_can_be_judged(rules: FormRules, text: str) -> None:
    assert isinstance(rules.violations(text), list)
