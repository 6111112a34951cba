"""Which row of the cache each reply has, against a model of a cache that applies the upkeep and nothing else."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from brain_server.torch_engine.compute.rows import Move, Rows, Swap, Upkeep, Wipe

CONTEXT_TOKENS = 12
CLEAR = (0, 0)


@dataclass(slots=True, kw_only=True, eq=False)
class Reply:
    """Has a row, and has written `dirty_tokens` tokens to it, each with its number."""

    number: int
    row: int = -1
    dirty_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Cache:
    """Rows of (number of the reply, position). Applies upkeep exactly as its docstrings say."""

    rows: list[list[tuple[int, int]]]

    def apply(self, upkeep: Upkeep) -> None:
        match upkeep:
            case Wipe(row=row, token_count=count):
                self._wipe(row, count)
            case Move(source=source, target=target, token_count=count):
                assert self.rows[target] == [CLEAR] * CONTEXT_TOKENS, "a row was moved onto another reply's tokens"
                self.rows[target][:count] = self.rows[source][:count]
                self._wipe(source, count)
            case Swap(first_row=first_row, second_row=second_row, token_count=count):
                first_content = self.rows[first_row][:count]
                self.rows[first_row][:count] = self.rows[second_row][:count]
                self.rows[second_row][:count] = first_content

    def _wipe(self, row: int, count: int) -> None:
        self.rows[row][:count] = [CLEAR] * count


@dataclass(slots=True)
class Layout:
    """Which replies are where, as the docstrings of `Rows` say."""

    prefill: list[Reply] = field(default_factory=list)
    lane: list[Reply] = field(default_factory=list)


class RowsMachine(RuleBasedStateMachine):
    """Replies join, read, start to decode and leave in any order; several of these may happen between two steps."""

    @initialize(count=st.integers(1, 6))
    def begin(self, count: int) -> None:
        self.count = count
        self.rows = Rows(count)
        self.cache = Cache(rows=[[CLEAR] * CONTEXT_TOKENS for _ in range(count)])
        self.layout = Layout()
        self.numbers = 0

    @rule()
    def join(self) -> None:
        if not self.rows.free_count:
            return
        self.numbers += 1
        reply = Reply(number=self.numbers)
        self.rows.join(reply)
        self.layout.prefill.append(reply)

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        if self.layout.prefill:
            reply = data.draw(st.sampled_from(self.layout.prefill))
            self.rows.promote(reply)
            self.layout.prefill.remove(reply)
            self.layout.lane.append(reply)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        replies = [*self.layout.prefill, *self.layout.lane]
        if replies:
            reply = data.draw(st.sampled_from(replies))
            self.rows.leave(reply)
            group = self.layout.prefill if reply in self.layout.prefill else self.layout.lane
            group.remove(reply)

    @rule()
    def clear_while_no_reply_is_there(self) -> None:
        if self.layout.prefill or self.layout.lane:
            return
        # What a step that failed halfway may have left.
        for row in self.cache.rows:
            row[:] = [(-1, -1)] * CONTEXT_TOKENS
        self.rows.clear(CONTEXT_TOKENS)
        self._apply_upkeep()

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Applies the upkeep; then each reply writes to its row."""
        self._apply_upkeep()
        for reply in [*self.layout.lane, *self.layout.prefill]:
            row = self.cache.rows[reply.row]
            assert row[: reply.dirty_tokens] == [(reply.number, place) for place in range(reply.dirty_tokens)]
            limit = min(3, CONTEXT_TOKENS - reply.dirty_tokens)
            for place in range(reply.dirty_tokens, reply.dirty_tokens + data.draw(st.integers(0, limit))):
                row[place] = (reply.number, place)
                reply.dirty_tokens += 1
        dirty_by_row = {reply.row: reply.dirty_tokens for reply in (*self.layout.lane, *self.layout.prefill)}
        for number, row in enumerate(self.cache.rows):
            dirty_tokens = dirty_by_row.get(number, 0)
            assert row[dirty_tokens:] == [CLEAR] * (CONTEXT_TOKENS - dirty_tokens), "another reply's tokens remain"

    @invariant()
    def the_lane_is_the_first_rows_and_no_row_is_shared(self) -> None:
        lane, prefill = self.rows.lane, self.rows.prefill
        assert [reply.row for reply in lane] == list(range(len(lane)))
        assert set(map(id, lane)) == set(map(id, self.layout.lane))
        rows_in_use = [reply.row for reply in (*lane, *prefill)]
        assert len(set(rows_in_use)) == len(rows_in_use)
        assert set(rows_in_use) <= set(range(self.count))
        assert self.rows.free_count == self.count - len(rows_in_use)

    @invariant()
    def the_prefill_is_in_the_order_in_which_they_joined(self) -> None:
        assert self.rows.prefill == self.layout.prefill

    def _apply_upkeep(self) -> None:
        for upkeep in self.rows.take_upkeep():
            self.cache.apply(upkeep)
        assert not self.rows.take_upkeep()


RowsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestRows = RowsMachine.TestCase
