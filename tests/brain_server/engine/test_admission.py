"""Which requests are admitted. Needs no model."""

import time
from contextlib import ExitStack

import pytest

from brain_server.engine.admission import Admission
from brain_server.engine.settings import EngineSettings
from mesh.errors import QueueFull, ServerDraining


def test_a_request_beyond_the_limit_is_refused_until_another_ends() -> None:
    admission = Admission(limit=2, student_limit=2, anonymous_limit=2, modelless_limit=2)
    with ExitStack() as stack:
        stack.enter_context(admission.place(None))
        with admission.place(None):
            with pytest.raises(QueueFull), admission.place(None):
                pass
            assert admission.present == 2
        stack.enter_context(admission.place(None))
    assert admission.present == 0


def test_a_student_at_their_limit_is_refused_while_others_are_admitted() -> None:
    admission = Admission(limit=10, student_limit=2, anonymous_limit=10, modelless_limit=10)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(admission.place(None, student_id="ada"))
        with pytest.raises(QueueFull), admission.place(None, student_id="ada"):
            pass
        for student_id in ("ben", None, None, None):
            stack.enter_context(admission.place(None, student_id=student_id))
    with admission.place(None, student_id="ada"), admission.place(None, student_id="ada"):
        assert admission.present == 2


def test_requests_without_a_student_leave_places_for_students() -> None:
    admission = Admission(limit=8, student_limit=8, anonymous_limit=2, modelless_limit=8)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(admission.place(None))
        with pytest.raises(QueueFull, match="name no student") as caught, admission.place(None):
            pass
        assert caught.value.facts == {"limit": 2}
        # Neither students nor the server itself are held up.
        for _ in range(5):
            stack.enter_context(admission.place(None, student_id="ada", has_model=True))
        with admission.own_place(), pytest.raises(QueueFull), admission.own_place():
            pass
    with admission.place(None), admission.place(None):
        assert admission.present == 2


def test_students_without_a_model_leave_places_for_the_others() -> None:
    admission = Admission(limit=4, student_limit=4, anonymous_limit=1, modelless_limit=2)
    with ExitStack() as stack:
        for student_id in ("invented-1", "invented-2"):
            allowance = stack.enter_context(admission.place(None, student_id=student_id))
            admission.settle(allowance, has_model=False)
        for _ in range(2):
            with admission.place(None, student_id="invented-3") as allowance:
                with pytest.raises(QueueFull, match="students without a model") as caught:
                    admission.settle(allowance, has_model=False)
                assert caught.value.facts == {"limit": 2}
        for student_id in ("ada", "ben"):
            allowance = stack.enter_context(admission.place(None, student_id=student_id))
            admission.settle(allowance, has_model=True)
        assert admission.present == 4
        with pytest.raises(QueueFull, match="the queue is full"), admission.place(None, student_id="cem"):
            pass
    with admission.place(None, student_id="invented-3") as allowance:
        admission.settle(allowance, has_model=False)


def test_requests_whose_student_may_be_made_up_take_no_place_from_students_with_a_model() -> None:
    admission = Admission(limit=2, student_limit=1, anonymous_limit=1, modelless_limit=1)
    with ExitStack() as stack:
        allowances = [stack.enter_context(admission.place(None, student_id=f"new-{number}")) for number in range(2)]
        with pytest.raises(QueueFull), admission.place(None, student_id="new-2"):
            pass
        for student_id in ("ada", "ben"):
            stack.enter_context(admission.place(None, student_id=student_id, has_model=True))
        # The others are told so as soon as it is known who they are.
        for allowance, has_model in zip(allowances, (True, False), strict=True):
            with pytest.raises(QueueFull):
                admission.settle(allowance, has_model=has_model)


def test_half_of_the_places_is_for_students_without_a_model() -> None:
    assert EngineSettings(queue_limit=256, max_batch=16).modelless_places == 136
    assert EngineSettings(queue_limit=1, max_batch=1).modelless_places == 1


def test_a_quarter_of_the_places_is_for_requests_without_a_student_unless_it_is_set() -> None:
    assert EngineSettings(queue_limit=256, max_batch=16).anonymous_places == 68
    assert EngineSettings(queue_limit=1, max_batch=1).anonymous_places == 1
    assert EngineSettings(anonymous_limit=5).anonymous_places == 5


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(limit=1, student_limit=1, anonymous_limit=1, modelless_limit=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.place(None, student_id="ada") as allowance:
            _ = 1 / 0
        assert admission.present == 0
        # What is left of the request ends at its next check.
        with pytest.raises(ServerDraining):
            allowance.check()


def test_a_refused_caller_is_told_to_retry_after_the_recent_mean_duration() -> None:
    admission = Admission(limit=1, student_limit=1, anonymous_limit=1, modelless_limit=1)
    assert retry_seconds(admission) == 1.0
    admission.record_duration(4.0)
    assert retry_seconds(admission) == pytest.approx(4.0)
    for _ in range(100):
        admission.record_duration(0.5)
    assert retry_seconds(admission) == pytest.approx(0.5, rel=0.01)


def test_closing_withdraws_the_present_requests_and_refuses_new_ones() -> None:
    admission = Admission(limit=3, student_limit=3, anonymous_limit=3, modelless_limit=3)
    with admission.place(time.monotonic() + 60) as allowance:
        allowance.check()
        admission.close()
        with pytest.raises(ServerDraining):
            allowance.check()
        with pytest.raises(ServerDraining), admission.place(None):
            pass


def retry_seconds(admission: Admission) -> float:
    """The retry hint of a refusal."""
    with admission.place(None), pytest.raises(QueueFull) as caught, admission.place(None):
        pass
    return caught.value.retry_seconds
