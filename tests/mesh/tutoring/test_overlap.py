"""Word overlap: what counts as the same word, and how long a student's text may keep the server busy."""

import itertools

import pytest

from mesh.tutoring.criteria import Criteria
from mesh.tutoring.overlap import OVERLAP_FEATURES, overlap_of


def features_of(answer: str, reference: str, *, question: str = "Why?") -> dict[str, float]:
    criteria = Criteria(question=question, reference_answer=reference)
    return dict(zip(OVERLAP_FEATURES, overlap_of(answer, criteria), strict=True))


@pytest.mark.parametrize("word", ["gravity", "gravty", "graviity", "grbvity", "rgavity", "gravitz", "gravit"])
def test_a_word_with_one_mistake_is_the_same_word(word: str) -> None:
    features = features_of(word, "gravity")
    assert (features["recall"], features["precision"]) == (1, 1)


@pytest.mark.parametrize(("word", "reference"), [("grvty", "gravity"), ("cat", "bat"), ("eavity", "gravity")])
def test_short_words_and_words_with_two_mistakes_are_others(word: str, reference: str) -> None:
    assert features_of(word, reference)["recall"] == 0


def test_shares_are_of_the_words_of_each_text() -> None:
    features = features_of("gravity pulls the moon", "gravity pulls", question="What does the moon do?")
    assert features["recall"] == 1
    assert features["precision"] == pytest.approx(2 / 3)
    assert features["novelty"] == pytest.approx(2 / 3)


def test_without_a_right_answer_only_novelty_is_known() -> None:
    features = features_of("gravity", "")
    assert [name for name, value in features.items() if value] == ["novelty"]


def test_a_long_text_of_words_that_are_nearly_alike_compares_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr("mesh.tutoring.overlap._is_misspelt", lambda word, _other: compared.append(word))
    words = ["aaaaa" + "".join(letters) for letters in itertools.product("bcdfgh", repeat=4)]
    answer, reference = words[::2], words[1::2]

    features_of(" ".join(answer), " ".join(reference))

    assert len(compared) < len(answer) * len(reference) / 10
