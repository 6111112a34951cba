"""Runs that a reply may not say again, and how long they are."""

import pytest

from mesh.lm.repetition import RUN_LENGTHS, RunHistory, RunTokens, choose_run_length, run_tokens_of

SEVEN, PIECE = 7, 9000
TOKENS = RunTokens(digits=frozenset({SEVEN}), word_starts=frozenset(range(9000)))


def blocked_after(tokens: list[int], *, length: int = 3) -> frozenset[int]:
    history = RunHistory(length, TOKENS)
    for token in tokens:
        history.push(token)
    return history.blocked


@pytest.mark.parametrize(
    ("tokens", "blocked"),
    [
        ([], set()),
        ([1, 2, 3], set()),
        ([1, 2, 3, 1], set()),
        ([1, 2, 3, 1, 2], {3}),
        ([1, 2, 3, 1, 2, 4, 1, 2], {3, 4}),
        ([5, 5, 5], {5}),
        ([1, 2, 3, 1, 3], set()),
    ],
)
def test_a_token_is_blocked_if_it_would_complete_a_run_that_was_said(tokens: list[int], blocked: set[int]) -> None:
    assert blocked_after(tokens) == blocked


@pytest.mark.parametrize("tokens", [[1, SEVEN, 3, 1, SEVEN], [1, 2, SEVEN, 1, 2], [SEVEN, 2, 3, SEVEN, 2]])
def test_a_run_with_a_digit_may_be_said_again(tokens: list[int]) -> None:
    assert not blocked_after(tokens)


def test_a_short_run_may_be_said_twice_and_no_third_time() -> None:
    again = [1, 2, 3, 4, 10, 1, 2, 3]
    assert not blocked_after(again, length=6)
    assert blocked_after([*again, 4, 11, 1, 2, 3], length=6) == {4}
    # With a digit in it, it may be said as often as it is needed.
    assert not blocked_after([1, SEVEN, 3, 4, 10, 1, SEVEN, 3, 4, 11, 1, SEVEN, 3], length=6)


def test_a_digit_parts_a_run() -> None:
    # 1 2 3 is said once in one piece, and then with a digit between.
    assert not blocked_after([1, 2, 3, 1, SEVEN, 2])
    assert blocked_after([SEVEN, 1, 2, 3, SEVEN, 1, 2]) == {3}


def test_a_word_is_never_broken_off() -> None:
    assert not blocked_after([1, 2, PIECE, 1, 2])
    # The piece still counts: the word after it is blocked.
    assert blocked_after([1, 2, PIECE, 3, 1, 2, PIECE]) == {3}


def test_the_shortest_run_is_chosen_that_good_replies_hardly_ever_repeat() -> None:
    varied = [list(range(start, start + 400)) for start in range(0, 4000, 400)]
    assert choose_run_length(varied, TOKENS) == RUN_LENGTHS[0]
    # A reply that needs the same five tokens again and again.
    phrase = [1, 2, 3, 4, 5]
    repeated = [[*phrase, 10 + place, *phrase, 100 + place, *phrase] for place in range(30)]
    assert choose_run_length([*varied, *repeated], TOKENS) == 6


def test_a_few_replies_choose_no_shorter_run_than_many_did() -> None:
    assert choose_run_length([[1, 2, 3, 4]], TOKENS, least=5) == 5
    assert choose_run_length([], TOKENS, least=6) == 6


def test_no_run_is_blocked_if_good_replies_repeat_them_all() -> None:
    assert choose_run_length([[1, 2] * 50], TOKENS) == 0


def test_digits_and_word_starts_are_known_by_the_text_of_a_token() -> None:
    class ByteLevel:
        """As byte-level tokenizers write: the second byte of an o with an accent looks like a superscript three."""

        def get_vocab(self) -> dict[str, int]:
            return {"\u0120a": 0, "7": 1, "\u012042": 2, "-": 3, "\u00c3\u00b3": 4, "ing": 5}

        def decode(self, token_ids: int) -> str:
            return (" a", "7", " 42", "-", "\u00f3", "ing")[token_ids]

    assert run_tokens_of(ByteLevel()) == RunTokens(digits=frozenset({1, 2}), word_starts=frozenset({0, 2}))
