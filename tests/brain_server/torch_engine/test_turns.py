"""The order in which requests take their turns. Needs no model."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_server.torch_engine.turns import FairQueue


def test_a_student_with_many_waits_behind_the_first_of_every_other() -> None:
    queue = filled_queue(["ada"] * 5 + ["ben", "eve"])
    assert pop_all(queue) == ["ada-0", "ben-0", "eve-0", "ada-1", "ada-2", "ada-3", "ada-4"]


def test_a_new_key_waits_for_at_most_one_item_of_each_other() -> None:
    queue = filled_queue(["ada", "ben"] * 50)
    assert queue.pop() == "ada-0"
    queue.push("eve-0", key="eve")
    assert [queue.pop() for _ in range(3)] == ["ben-0", "ada-1", "eve-0"]


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_turns_go_round_and_each_students_items_keep_their_order(keys: list[str]) -> None:
    queue = filled_queue(keys)
    order = pop_all(queue)
    counts = Counter(keys)
    arrivals = list(counts)
    rounds = range(max(counts.values(), default=0))
    assert order == [f"{key}-{place}" for place in rounds for key in arrivals if counts[key] > place]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.data())
def test_a_discarded_item_is_gone_and_the_others_keep_their_order(keys: list[str], data: st.DataObject) -> None:
    queue = filled_queue(keys)
    order = pop_all(filled_queue(keys))
    item = data.draw(st.sampled_from(order))
    assert queue.discard(item, key=item[0])
    assert not queue.discard(item, key=item[0])
    assert len(queue) == len(keys) - 1
    remaining = pop_all(queue)
    assert sorted(remaining) == sorted(set(order) - {item})
    for key in set(keys):
        positions = [int(item.removeprefix(f"{key}-")) for item in remaining if item[0] == key]
        assert positions == sorted(positions)


def test_an_empty_queue_raises() -> None:
    queue = filled_queue(["ada"])
    assert (len(queue), queue.pop(), len(queue)) == (1, "ada-0", 0)
    with pytest.raises(IndexError):
        queue.pop()
    assert not queue.discard("ada-0", key="ada")


def filled_queue(keys: list[str]) -> FairQueue[str]:
    """A queue of items, each named by its key and its position among the key's items."""
    queue: FairQueue[str] = FairQueue()
    pushed_counts: Counter[str] = Counter()
    for key in keys:
        queue.push(f"{key}-{pushed_counts[key]}", key=key)
        pushed_counts[key] += 1
    return queue


def pop_all(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]
