"""Which row of the cache each reply has, against a cache that does nothing but what it is told."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from brain_server.torch_engine.compute.rows import Move, Rows, Swap, Upkeep, Wipe

CONTEXT_TOKENS = 12
CLEAR = (0, 0)


@dataclass(slots=True, kw_only=True, eq=False)
class Reply:
    """Holds a row, and has written so many tokens to it; what it wrote carries its number."""

    number: int
    row: int = -1
    touched: int = 0


@dataclass(slots=True, kw_only=True)
class Cache:
    """Rows of (reply's number, position); does exactly what it is told, no more."""

    rows: list[list[tuple[int, int]]]

    def do(self, upkeep: Upkeep) -> None:
        match upkeep:
            case Wipe(row, tokens):
                self._wipe(row, tokens)
            case Move(source, target, tokens):
                assert self.rows[target] == [CLEAR] * CONTEXT_TOKENS, "a row was moved onto what another had written"
                self.rows[target][:tokens] = self.rows[source][:tokens]
                self._wipe(source, tokens)
            case Swap(one, other, tokens):
                kept = self.rows[one][:tokens]
                self.rows[one][:tokens] = self.rows[other][:tokens]
                self.rows[other][:tokens] = kept

    def _wipe(self, row: int, tokens: int) -> None:
        self.rows[row][:tokens] = [CLEAR] * tokens


@dataclass(slots=True)
class Present:
    """Who is where, as a reader of `Rows`' docstrings expects it."""

    reading: list[Reply] = field(default_factory=list)
    writing: list[Reply] = field(default_factory=list)


class RowsMachine(RuleBasedStateMachine):
    """Replies come, read, begin to write and leave in any order; several of that may happen between two steps."""

    @initialize(count=st.integers(1, 6))
    def begin(self, count: int) -> None:
        self.count = count
        self.rows = Rows(count)
        self.cache = Cache(rows=[[CLEAR] * CONTEXT_TOKENS for _ in range(count)])
        self.present = Present()
        self.numbers = 0

    @rule()
    def join(self) -> None:
        if not self.rows.free:
            return
        self.numbers += 1
        reply = Reply(number=self.numbers)
        self.rows.join(reply)
        self.present.reading.append(reply)

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        if self.present.reading:
            reply = data.draw(st.sampled_from(self.present.reading))
            self.rows.promote(reply)
            self.present.reading.remove(reply)
            self.present.writing.append(reply)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        everyone = [*self.present.reading, *self.present.writing]
        if everyone:
            reply = data.draw(st.sampled_from(everyone))
            self.rows.leave(reply)
            among = self.present.reading if reply in self.present.reading else self.present.writing
            among.remove(reply)

    @rule()
    def clear_when_nobody_is_there(self) -> None:
        if self.present.reading or self.present.writing:
            return
        # What a step that failed half-way may have left.
        for row in self.cache.rows:
            row[:] = [(-1, -1)] * CONTEXT_TOKENS
        self.rows.clear(CONTEXT_TOKENS)
        self._keep_up()

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """The upkeep, then everyone writes to the row that is theirs."""
        self._keep_up()
        for reply in [*self.present.writing, *self.present.reading]:
            row = self.cache.rows[reply.row]
            assert row[: reply.touched] == [(reply.number, place) for place in range(reply.touched)]
            most = min(3, CONTEXT_TOKENS - reply.touched)
            for place in range(reply.touched, reply.touched + data.draw(st.integers(0, most))):
                row[place] = (reply.number, place)
                reply.touched += 1
        held = {reply.row: reply.touched for reply in (*self.present.writing, *self.present.reading)}
        for number, row in enumerate(self.cache.rows):
            touched = held.get(number, 0)
            assert row[touched:] == [CLEAR] * (CONTEXT_TOKENS - touched), "something of another is left in the row"

    @invariant()
    def the_lane_is_the_first_rows_and_nobody_shares_one(self) -> None:
        lane, behind = self.rows.lane, self.rows.behind
        assert [reply.row for reply in lane] == list(range(len(lane)))
        assert set(map(id, lane)) == set(map(id, self.present.writing))
        taken = [reply.row for reply in (*lane, *behind)]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(self.count))
        assert self.rows.free == self.count - len(taken)

    @invariant()
    def those_behind_are_in_the_order_in_which_they_joined(self) -> None:
        assert self.rows.behind == self.present.reading

    def _keep_up(self) -> None:
        for upkeep in self.rows.take_upkeep():
            self.cache.do(upkeep)
        assert not self.rows.take_upkeep()


RowsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestRows = RowsMachine.TestCase
