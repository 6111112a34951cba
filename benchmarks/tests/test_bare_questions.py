"""The clone of products alone, and what clones are asked."""

from benchmarks.bare_questions import product_baseline


def test_a_third_of_the_products_is_wrong_and_each_is_marked_as_it_is() -> None:
    responses = product_baseline().responses
    assert sum(response.is_correct is False for response in responses) == len(responses) // 3
    assert all((response.student_answer == response.reference_answer) == response.is_correct for response in responses)
