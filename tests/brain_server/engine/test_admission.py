"""Who may come in and who is next; neither needs a model."""

import itertools
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_server.engine.admission import Admission, FairQueue
from mesh.errors import QueueFull, ServerDraining


class TestFairQueue:
    def test_a_student_with_many_waits_behind_the_first_of_every_other(self) -> None:
        queue = filled(["ada"] * 5 + ["ben", "eve"])
        assert drained(queue) == ["ada-0", "ben-0", "eve-0", "ada-1", "ada-2", "ada-3", "ada-4"]

    def test_who_comes_while_others_have_many_waits_for_one_of_each_at_most(self) -> None:
        queue = filled(["ada", "ben"] * 50)
        assert queue.pop() == "ada-0"
        queue.push("eve-0", key="eve")
        assert [queue.pop() for _ in range(3)] == ["ben-0", "ada-1", "eve-0"]

    @given(st.lists(st.sampled_from("abcd"), max_size=30))
    def test_turns_go_round_and_each_students_come_in_their_order(self, keys: list[str]) -> None:
        queue = filled(keys)
        order = drained(queue)
        counts = Counter(keys)
        arrivals = list(counts)
        rounds = range(max(counts.values(), default=0))
        assert order == [f"{key}-{place}" for place in rounds for key in arrivals if counts[key] > place]

    @given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.data())
    def test_what_is_discarded_is_gone_and_the_rest_keeps_its_order(self, keys: list[str], data: st.DataObject) -> None:
        queue = filled(keys)
        order = drained(filled(keys))
        gone = data.draw(st.sampled_from(order))
        assert queue.discard(gone, key=gone[0])
        assert not queue.discard(gone, key=gone[0])
        assert len(queue) == len(keys) - 1
        left = drained(queue)
        assert sorted(left) == sorted(set(order) - {gone})
        assert all(one < other for one, other in itertools.pairwise(left) if one[0] == other[0])

    def test_an_empty_queue_has_no_next(self) -> None:
        queue = filled(["ada"])
        assert (len(queue), queue.pop(), len(queue)) == (1, "ada-0", 0)
        with pytest.raises(IndexError):
            queue.pop()
        assert not queue.discard("ada-0", key="ada")


class TestAdmission:
    def test_more_than_the_limit_is_refused_until_someone_leaves(self) -> None:
        admission = Admission(limit=2, student_limit=2)
        with ExitStack() as stack:
            stack.enter_context(admission.place(None))
            with admission.place(None):
                with pytest.raises(QueueFull), admission.place(None):
                    pass
                assert admission.present == 2
            stack.enter_context(admission.place(None))
        assert admission.present == 0

    def test_one_student_never_has_more_than_their_share_while_others_come_in(self) -> None:
        admission = Admission(limit=10, student_limit=2)
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(admission.place(None, student_id="ada"))
            with pytest.raises(QueueFull), admission.place(None, student_id="ada"):
                pass
            # Who names no student is not one student.
            for student_id in ("ben", None, None, None):
                stack.enter_context(admission.place(None, student_id=student_id))
        with admission.place(None, student_id="ada"), admission.place(None, student_id="ada"):
            assert admission.present == 2

    def test_a_request_that_fails_gives_its_place_back(self) -> None:
        admission = Admission(limit=1, student_limit=1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), admission.place(None, student_id="ada") as allowance:
                _ = 1 / 0
            assert admission.present == 0
            # What is still on its way through the engine ends there.
            with pytest.raises(ServerDraining):
                allowance.check()

    def test_the_refused_are_told_to_come_back_after_what_requests_took_lately(self) -> None:
        admission = Admission(limit=1, student_limit=1)
        assert retry_seconds(admission) == 1.0
        admission.ended(4.0)
        assert retry_seconds(admission) == pytest.approx(4.0)
        for _ in range(100):
            admission.ended(0.5)
        assert retry_seconds(admission) == pytest.approx(0.5, rel=0.01)

    def test_closing_withdraws_those_inside_and_refuses_who_comes(self) -> None:
        admission = Admission(limit=3, student_limit=3)
        with admission.place(time.monotonic() + 60) as allowance:
            allowance.check()
            admission.close()
            with pytest.raises(ServerDraining):
                allowance.check()
            with pytest.raises(ServerDraining), admission.place(None):
                pass


def filled(keys: list[str]) -> FairQueue[str]:
    """A queue of things named by their key and their place among its things."""
    queue: FairQueue[str] = FairQueue()
    seen: Counter[str] = Counter()
    for key in keys:
        queue.push(f"{key}-{seen[key]}", key=key)
        seen[key] += 1
    return queue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def retry_seconds(admission: Admission) -> float:
    """What someone who meets a full house is told."""
    with admission.place(None), pytest.raises(QueueFull) as caught, admission.place(None):
        pass
    return caught.value.retry_seconds
