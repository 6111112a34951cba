"""Where a reply ends at a stop sequence, however it arrives."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brain_server.torch_engine.compute.stop_texts import StopFilter

# Few letters, so that sequences, their beginnings and overlaps are common.
LETTERS = st.sampled_from("abc")
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text(LETTERS, max_size=6), max_size=12)


def texts_sent(pieces: Sequence[str], *stops: str) -> list[str]:
    """What each piece passes on, and the text flushed at the end."""
    stop_filter = StopFilter(stops)
    return [*map(stop_filter.push, pieces), stop_filter.flush()]


def cut_index(text: str, stops: Sequence[str]) -> int | None:
    """Where the first sequence begins."""
    return min((start for stop in stops if (start := text.find(stop)) >= 0), default=None)


def is_certain(text: str, length: int, stops: Sequence[str]) -> bool:
    """Whether the text up to there is part of the reply, whatever comes after the text."""
    return not any(stop.startswith(text[start : start + len(stop)]) for start in range(length) for stop in stops)


def test_without_sequences_every_piece_goes_out_at_once() -> None:
    assert texts_sent(["Plants ", "make ", "food."]) == ["Plants ", "make ", "food.", ""]


def test_a_reply_ends_before_the_sequence_and_what_follows_is_dropped() -> None:
    stop_filter = StopFilter(["\n\n"])
    assert [stop_filter.push(piece) for piece in ("One.", "\n\nTwo.", "\n\nThree.")] == ["One.", "", ""]
    assert stop_filter.has_stopped
    assert stop_filter.flush() == ""


def test_a_sequence_that_comes_in_pieces_is_never_sent_in_part() -> None:
    assert texts_sent(["Plants eat", " EN", "D", " of it"], " END") == ["Plants eat", "", "", "", ""]


def test_what_looked_like_a_sequence_goes_out_once_it_is_none() -> None:
    assert texts_sent(["Plants eat", " EN", "ERGY"], " END") == ["Plants eat", "", " ENERGY", ""]


def test_what_looked_like_a_sequence_goes_out_when_the_model_ends() -> None:
    assert texts_sent(["Plants eat", " EN"], " END") == ["Plants eat", "", " EN"]


def test_a_sequence_that_begins_within_a_false_start_is_found() -> None:
    assert texts_sent(["xa", "a", "ab"], "aab") == ["x", "", "a", ""]


def test_the_sequence_that_begins_first_wins_even_if_another_is_complete_before_it() -> None:
    assert texts_sent(["x<<", "a", ">>"], "<<a>>", "a") == ["x", "", "", ""]
    assert texts_sent(["x<<", "a", "!"], "<<a>>", "a") == ["x", "", "<<", ""]


def test_a_sequence_inside_one_that_never_completed_ends_the_reply_at_its_end() -> None:
    stop_filter = StopFilter(["<<a>>", "a"])
    assert [stop_filter.push(piece) for piece in ("x<<", "a")] == ["x", ""]
    assert not stop_filter.has_stopped
    assert stop_filter.flush() == "<<"
    assert stop_filter.has_stopped


def test_a_reply_may_end_before_its_first_character() -> None:
    stop_filter = StopFilter(["One"])
    assert stop_filter.push("One.") == ""
    assert stop_filter.has_stopped


def test_an_empty_sequence_is_a_fault_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        StopFilter(["a", ""])


@given(PIECES, STOPS)
@example(["ab", "c"], ["abc", "b"])
def test_however_a_reply_is_cut_into_pieces_it_ends_where_find_says(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    reply = "".join([*map(stop_filter.push, pieces), stop_filter.flush()])

    text = "".join(pieces)
    cut = cut_index(text, stops)
    assert reply == text[:cut]
    assert stop_filter.has_stopped is (cut is not None)


@given(PIECES, STOPS)
def test_what_is_sent_is_all_that_is_certain_and_nothing_else(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    text = reply = ""
    for piece in pieces:
        text += piece
        reply += stop_filter.push(piece)

        assert text.startswith(reply)
        assert is_certain(text, len(reply), stops)
        assert len(reply) == len(text) or not is_certain(text, len(reply) + 1, stops)
        assert stop_filter.has_stopped is any(text.startswith(stop, len(reply)) for stop in stops)
