"""Figures of texts that were screened."""

import pytest

from curriculum.metrics import average_precision, recall_at, screening


def test_recall_is_told_at_the_share_of_harmless_texts_that_may_be_blocked() -> None:
    harmless = [place / 100 for place in range(100)]
    assert recall_at(0.1, [0.95, 0.9, 0.895, 0.5], harmless) == 0.75
    assert recall_at(0.0, [0.995, 0.99], harmless) == 0.5


def test_harmful_texts_that_score_as_harmless_ones_are_not_caught() -> None:
    assert recall_at(0.1, [0.5] * 10, [0.5] * 10) == 0


def test_average_precision_is_one_for_a_perfect_order_and_the_share_for_no_order() -> None:
    truths = [True, False, True, False]
    assert average_precision([0.9, 0.2, 0.8, 0.1], truths) == 1
    assert average_precision([0.5] * 4, truths) == 0.5
    assert average_precision([0.9, 0.8, 0.7, 0.1], truths) == pytest.approx((1 + 2 / 3) / 2)


def test_screening_counts_what_is_caught_and_what_is_blocked_though_harmless() -> None:
    figures = screening([0.9, 0.4, 0.6, 0.1], [True, False, True, False], [True, True, False, False])
    assert (figures["texts"], figures["caught"], figures["blocked though harmless"]) == (4, 0.5, 0.5)
    assert "caught" not in screening([0.9], [True], [False])
    assert "blocked though harmless" not in screening([0.9], [True], [True])
