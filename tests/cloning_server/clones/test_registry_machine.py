"""The registry as a whole on a real Valkey: three workers, three students, and whatever they do in any order.

hypothesis chooses the steps. A small model says what each step must answer, and after each step what Valkey holds is
compared with it. The store's clock stands still but for the step that moves it. Any answer of a script may get lost:
the client then calls it again, as redis-py does.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from unittest.mock import patch

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cloning_server.clone import AttemptOutcome, CloneState, Failure, Priority, Terms
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.estimates import HEAD_START_PLACES
from cloning_server.clones.leases import CloneLease, Pause
from cloning_server.clones.records import ErasedRecords
from cloning_server.clones.registry import Registry
from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.running.journal import Journal
from mesh.errors import CloneAlreadyRunning, QueueFull, RequestIdReused
from mesh.valkey import script
from mesh.valkey.connection import open_redis
from mesh.valkey.script import LuaScript
from testing.parts.stores import RedisEndpoint
from tests.cloning_server.conftest import SEALING, baseline

WORKERS = range(3)
STUDENTS = ("ada", "ben", "cleo")
REQUEST_IDS = ("", "r1", "r2", "r3")
# Fewer than two clones of each student, so that the queue gets full.
QUEUE_LIMIT = 4
LEASE_SECONDS = 10.0
# Shorter than a lease, as long, and longer.
STEPS_OF_TIME = (4.0, 10.0, 25.0)
DELAYS = (0.0, 6.0)

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class ExpectedClone:
    """A clone as it must be.

    Attributes:
        place: In the queue.
        terms: With the student, all that tells one request from another here.
        sequence: Number of its last change.
        token: Of its lease; 0 without one.
        due: When its lease expires, or when it can be claimed after a delay; milliseconds, None if neither.
        is_final: Whether it has ended.
    """

    clone_id: str
    student_id: str
    request_id: str
    terms: Terms
    place: int
    sequence: int = 1
    token: int = 0
    due: int | None = None
    is_final: bool = False


@dataclass(slots=True)
class ExpectedStore:
    """All clones that were accepted and not erased, by id, in the order of acceptance."""

    clones: dict[str, ExpectedClone] = field(default_factory=dict)
    accepted: int = 0
    now: int = 1_000_000

    def lane(self, student_id: str) -> list[ExpectedClone]:
        return [clone for clone in self.of(student_id) if not clone.is_final]

    def of(self, student_id: str) -> list[ExpectedClone]:
        return [clone for clone in self.clones.values() if clone.student_id == student_id]

    def open(self) -> list[ExpectedClone]:
        return [clone for clone in self.clones.values() if not clone.is_final]

    def queued(self) -> list[ExpectedClone]:
        """The first of each lane, unless it runs or is put off."""
        lanes = [lane for student_id in STUDENTS if (lane := self.lane(student_id))]
        return [lane[0] for lane in lanes if lane[0].due is None]

    def claimable(self) -> list[ExpectedClone]:
        """The clones of which the next claim gets one; several only if their times or places are equal."""
        expired = [clone for clone in self.open() if clone.due is not None and clone.due <= self.now]
        if expired:
            soonest = min(clone.due for clone in expired if clone.due is not None)
            return [clone for clone in expired if clone.due == soonest]
        queued = self.queued()
        lowest = min((clone.place for clone in queued), default=0)
        return [clone for clone in queued if clone.place == lowest]

    def made_by(self, request_id: str) -> ExpectedClone | None:
        return next((clone for clone in self.clones.values() if request_id and clone.request_id == request_id), None)

    def end(self, clone: ExpectedClone) -> None:
        clone.is_final, clone.token, clone.due = True, 0, None


class RegistryMachine(RuleBasedStateMachine):
    """Steps and invariants; `redis_url` is set by the test."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        # A loop of its own that is not the thread's: pytest-asyncio has that one.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._redis = open_redis(self.redis_url)
        tenant = f"t{uuid.uuid4().hex}"
        self._prefix = f"{{aivo:{tenant}}}:"
        clock = f"local function now_milliseconds() return tonumber(redis.call('GET', '{self._prefix}clock')) end"
        with patch.object(script, "_NOW", clock):
            self._store = CloneStore(self._redis, tenant=tenant)
            self._upkeep_store = UpkeepStore(self._redis, tenant=tenant)
        self._registry = Registry.of(self._store, sealing=SEALING, queue_limit=QUEUE_LIMIT)
        self._expected = ExpectedStore()
        self._journals: list[list[Journal]] = [[] for _ in WORKERS]
        self._leases: dict[Journal, CloneLease] = {}
        self._highest_token = 0

    def teardown(self) -> None:
        self._run(self._redis.aclose())
        self._runner.close()

    @initialize()
    def start_clock(self) -> None:
        self._set_clock()

    @rule(seconds=st.sampled_from(STEPS_OF_TIME))
    def let_time_pass(self, seconds: float) -> None:
        self._expected.now += int(seconds * 1000)
        self._set_clock()

    # Callers.

    @rule(
        student_id=st.sampled_from(STUDENTS),
        request_id=st.sampled_from(REQUEST_IDS),
        priority=st.sampled_from([Priority.NORMAL, Priority.NORMAL, Priority.HIGH]),
        may_wait=st.booleans(),
        is_lost=st.booleans(),
    )
    def start(self, student_id: str, request_id: str, priority: Priority, *, may_wait: bool, is_lost: bool) -> None:
        terms = Terms(priority=priority, queue_behind=may_wait)
        earlier, lane = self._expected.made_by(request_id), self._expected.lane(student_id)
        waiting = [clone for clone in self._expected.open() if not clone.token]

        def start() -> str:
            with self._answers_lost(is_lost=is_lost):
                call = self._registry.intake.start(student_id, baseline(2), request_id=request_id, terms=terms)
                return self._run(call).clone_id

        if earlier and (earlier.student_id, earlier.terms) == (student_id, terms):
            assert start() == earlier.clone_id
        elif earlier:
            with pytest.raises(RequestIdReused) as reused:
                start()
            assert reused.value.facts["clone_id"] == earlier.clone_id
        elif len(lane) > may_wait:
            with pytest.raises(CloneAlreadyRunning) as blocked:
                start()
            assert blocked.value.facts["clone_id"] == lane[may_wait].clone_id
        elif len(waiting) >= QUEUE_LIMIT:
            with pytest.raises(QueueFull):
                start()
        else:
            clone_id = start()
            assert clone_id not in self._expected.clones
            self._expected.accepted += 1
            self._expected.clones[clone_id] = ExpectedClone(
                clone_id=clone_id,
                student_id=student_id,
                request_id=request_id,
                terms=terms,
                place=self._expected.accepted - HEAD_START_PLACES[priority],
            )

    @precondition(lambda self: self._expected.clones)
    @rule(data=st.data(), is_lost=st.booleans())
    def cancel(self, data: st.DataObject, *, is_lost: bool) -> None:
        clone = data.draw(st.sampled_from(list(self._expected.clones.values())))
        with self._answers_lost(is_lost=is_lost):
            cancelled = self._run(self._registry.changes.cancel(clone.clone_id))
        if not clone.is_final:
            assert cancelled.state is CloneState.CANCELLED
            clone.sequence += 1
            self._expected.end(clone)

    @precondition(lambda self: self._expected.open())
    @rule(data=st.data())
    def cancel_unstarted(self, data: st.DataObject) -> None:
        clone = data.draw(st.sampled_from(self._expected.open()))
        latest = self._run(self._registry.changes.find(clone.clone_id))
        is_cancelled = self._run(self._registry.changes.cancel_unstarted(latest))
        assert is_cancelled == (not clone.token and not latest.attempts)
        if is_cancelled:
            clone.sequence += 1
            self._expected.end(clone)

    @rule(student_id=st.sampled_from(STUDENTS), cancels=st.booleans(), is_lost=st.booleans())
    def delete_student(self, student_id: str, *, cancels: bool, is_lost: bool) -> None:
        """As an erasure does, which cancels first; or without, as when a clone is accepted meanwhile."""
        if cancels:
            for clone in reversed(self._expected.lane(student_id)):
                self._run(self._registry.changes.cancel(clone.clone_id))
                clone.sequence += 1
                self._expected.end(clone)
        clones = self._expected.of(student_id)
        with self._answers_lost(is_lost=is_lost):
            removed = self._run(self._upkeep_store.erase(student_id))
        if self._expected.lane(student_id):
            assert removed is None
            return
        request_ids = sum(bool(clone.request_id) for clone in clones)
        assert removed == ErasedRecords(clones=len(clones), request_ids=request_ids)
        for clone in clones:
            del self._expected.clones[clone.clone_id]

    # Workers.

    @rule(worker=st.sampled_from(WORKERS), is_lost=st.booleans())
    def take(self, worker: int, *, is_lost: bool) -> None:
        """Claims a clone. If the answer is lost, the clone is leased to nobody until the lease expires."""
        claimable = self._expected.claimable()
        lease = self._run(self._registry.leases.claim(seconds=LEASE_SECONDS))
        if not claimable:
            dues = [clone.due for clone in self._expected.open() if clone.due is not None]
            seconds = (min(dues) - self._expected.now) / 1000 if dues else None
            assert lease == Pause(seconds=seconds)
            return
        assert isinstance(lease, CloneLease)
        (clone,) = (each for each in claimable if each.clone_id == lease.clone.clone_id)
        assert lease.token > self._highest_token
        assert lease.clone.sequence == clone.sequence
        self._highest_token = clone.token = lease.token
        clone.due = self._expected.now + int(LEASE_SECONDS * 1000)
        if not is_lost:
            journal = Journal(self._registry.changes, lease)
            self._journals[worker].append(journal)
            self._leases[journal] = lease

    @precondition(lambda self: self._leases)
    @rule(data=st.data(), is_lost=st.booleans())
    def renew(self, data: st.DataObject, *, is_lost: bool) -> None:
        journal = self._draw_journal(data)
        clone, lease = self._held_by(journal), self._leases[journal]
        with self._answers_lost(is_lost=is_lost):
            is_renewed = self._run(self._registry.leases.renew(lease, seconds=LEASE_SECONDS))
        assert is_renewed == (clone is not None)
        if clone:
            clone.due = self._expected.now + int(LEASE_SECONDS * 1000)

    @precondition(lambda self: self._leases)
    @rule(data=st.data(), fraction=st.floats(0, 1), is_lost=st.booleans())
    def report(self, data: st.DataObject, fraction: float, *, is_lost: bool) -> None:
        journal = self._draw_journal(data)
        self._write(journal, lambda: journal.reach(CloneState.FINE_TUNING, "step", fraction=fraction), is_lost=is_lost)

    @precondition(lambda self: self._leases)
    @rule(data=st.data(), is_completed=st.booleans(), is_lost=st.booleans())
    def finish(self, data: st.DataObject, *, is_completed: bool, is_lost: bool) -> None:
        journal = self._draw_journal(data)
        failure = Failure(reason="TRAINING_DIVERGED", message="It diverged")
        clone = self._write(
            journal, lambda: journal.complete("Done") if is_completed else journal.fail(failure), is_lost=is_lost
        )
        if clone:
            self._expected.end(clone)

    @precondition(lambda self: self._leases)
    @rule(data=st.data(), seconds=st.sampled_from(DELAYS), is_lost=st.booleans())
    def put_back(self, data: st.DataObject, seconds: float, *, is_lost: bool) -> None:
        journal = self._draw_journal(data)
        outcome = AttemptOutcome.HANDED_BACK if seconds == 0 else "TRAINER_UNAVAILABLE"
        clone = self._write(
            journal, lambda: journal.put_back("Waiting", outcome=outcome, seconds=seconds), is_lost=is_lost
        )
        if clone:
            clone.token = 0
            clone.due = self._expected.now + int(seconds * 1000) if seconds else None

    # What holds after each step.

    @invariant()
    def waiting_running_and_final_clones_are_all_that_were_accepted(self) -> None:
        async def read() -> tuple[list[str], dict[str, float], dict[str, float], dict[str, float], dict[str, str]]:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zrange(f"{self._prefix}clones", 0, -1)
                for name in ("open", "queued", "leases"):
                    pipe.zrange(f"{self._prefix}{name}", 0, -1, withscores=True)
                pipe.hgetall(f"{self._prefix}tokens")
                accepted, *places, tokens = await pipe.execute()
            return accepted, *map(dict, places), tokens

        accepted, unfinished, queued, leases, tokens = self._run(read())
        assert accepted == list(self._expected.clones)
        assert unfinished == {clone.clone_id: clone.place for clone in self._expected.open()}
        assert queued == {clone.clone_id: clone.place for clone in self._expected.queued()}
        assert leases == {clone.clone_id: clone.due for clone in self._expected.open() if clone.due is not None}
        assert tokens == {clone.clone_id: str(clone.token) for clone in self._expected.open() if clone.token}
        counts = self._run(self._registry.listing.count())
        assert (counts.queued_clones, counts.running_clones) == (len(unfinished) - len(tokens), len(tokens))

    @invariant()
    def each_student_has_their_clones_in_the_order_of_acceptance(self) -> None:
        for student_id in STUDENTS:
            lane = [clone.clone_id for clone in self._expected.lane(student_id)]
            assert self._run(self._upkeep_store.read_lane(student_id)) == lane
            page = self._run(self._registry.listing.list_clones(student_id=student_id, size=100))
            held = {clone.clone_id: clone for clone in page.clones}
            assert list(held)[::-1] == [clone.clone_id for clone in self._expected.of(student_id)]
            for clone in self._expected.of(student_id):
                assert (held[clone.clone_id].sequence, held[clone.clone_id].state.is_final) == (
                    clone.sequence,
                    clone.is_final,
                )

    @invariant()
    def nothing_is_left_of_what_is_erased_and_no_baseline_of_what_is_final(self) -> None:
        keys = self._run(self._redis.keys(f"{self._prefix}*:*"))
        held = {str(key).removeprefix(self._prefix) for key in keys}
        expected = {f"feed:{clone_id}" for clone_id in self._expected.clones}
        expected |= {f"baseline:{clone.clone_id}" for clone in self._expected.open()}
        expected |= {f"lane:{clone.student_id}" for clone in self._expected.open()}
        expected |= {f"clones:{clone.student_id}" for clone in self._expected.clones.values()}
        with_request = [clone for clone in self._expected.clones.values() if clone.request_id]
        expected |= {f"request:{clone.request_id}" for clone in with_request}
        expected |= {f"requests:{clone.student_id}" for clone in with_request}
        # What lets a repeated erasure answer as the first one holds nothing of a student, and goes soon.
        assert {key for key in held if not key.startswith("erasure:")} == expected

    def _set_clock(self) -> None:
        self._run(self._redis.set(f"{self._prefix}clock", self._expected.now))

    def _draw_journal(self, data: st.DataObject) -> Journal:
        worker = data.draw(st.sampled_from([worker for worker in WORKERS if self._journals[worker]]))
        return data.draw(st.sampled_from(self._journals[worker]))

    def _held_by(self, journal: Journal) -> ExpectedClone | None:
        """The clone whose lease a journal has; None if it was lost."""
        clone = self._expected.clones.get(journal.clone.clone_id)
        return clone if clone and clone.token == self._leases[journal].token else None

    def _write(self, journal: Journal, write: Callable[[], Awaitable[None]], *, is_lost: bool) -> ExpectedClone | None:
        """Has a worker write a change; returns the clone if it could. A worker without the lease changes nothing."""
        clone = self._held_by(journal)
        before = journal.clone.sequence
        try:
            with self._answers_lost(is_lost=is_lost):
                self._run(write())
        except CloneOvertaken:
            assert clone is None
            return None
        # A report that says nothing new is not written.
        assert clone or journal.clone.sequence == before
        if clone:
            assert clone.sequence == before
            clone.sequence = journal.clone.sequence
        return clone

    @contextmanager
    def _answers_lost(self, *, is_lost: bool) -> Iterator[None]:
        """Has the first answer of each script lost, so that the client calls it again."""
        call = LuaScript.__call__

        async def call_twice(self: LuaScript, **named: object) -> object:
            await call(self, **named)  # type: ignore[arg-type] # passed on as they came
            return await call(self, **named)  # type: ignore[arg-type]

        if is_lost:
            with patch.object(LuaScript, "__call__", call_twice):
                yield
        else:
            yield

    def _run(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self._runner.run(wait())


def run_machine(redis: RedisEndpoint, *, examples: int, steps: int) -> None:
    class Machine(RegistryMachine):
        redis_url = redis.url

    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=settings)


def test_no_steps_of_workers_and_callers_break_the_registry(redis_endpoint: RedisEndpoint) -> None:
    run_machine(redis_endpoint, examples=12, steps=30)


@pytest.mark.slow
def test_no_long_row_of_steps_of_workers_and_callers_breaks_the_registry(redis_endpoint: RedisEndpoint) -> None:
    run_machine(redis_endpoint, examples=200, steps=60)
