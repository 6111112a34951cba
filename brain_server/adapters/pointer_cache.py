"""A cache of the store's answers: which version is each student's active one, and which versions exist.

An answer is valid until it expires or is reported to have changed; then the next request asks the store again. So a
version that was removed, or whose student was deleted, answers nobody for longer than an answer's time to live.

While the store does not answer, the last answer still counts: a student whose adapter is in memory keeps it, rather
than being answered by the base model. It counts for as long as notices are heard, because a deletion would come with
one, and for a bounded time after the last word of store or notices. Callers wait for the store for a bounded time, and
not at all once it has let one of them wait in vain: then the last answers count at once, while one probe at a time asks
the store again. Knows nothing of weights.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Generic, TypeVar

from brain_server.adapters.breaker import Breaker
from brain_server.engine.contract import LoadedAdapter
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import AdapterRef
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterStoreUnavailable, AivoError, ModelVersionNotFound

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# Of answers that name something, and of those that say there is nothing. An answer takes about 1 kB. The least recently
# read are dropped first; each costs one read when it is needed again.
MAX_ANSWERS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoreAnswer(Generic[T]):
    value: T
    read_at: float
    stale: bool


class _Answers(Generic[K, T]):
    """Answers by what they are about.

    Those that say there is nothing have a bound of their own, because anybody can invent students. Those of students
    with a model must outlast them: they count while the store does not answer.
    """

    def __init__(self) -> None:
        # In each, the least recently read comes first.
        self._named: OrderedDict[K, _StoreAnswer[T]] = OrderedDict()
        self._nothing: OrderedDict[K, _StoreAnswer[T]] = OrderedDict()

    def __iter__(self) -> Iterator[K]:
        return chain(self._named, self._nothing)

    def get(self, key: K) -> _StoreAnswer[T] | None:
        return self._named.get(key) or self._nothing.get(key)

    def put(self, key: K, answer: _StoreAnswer[T]) -> None:
        latest = self.pop(key)
        # Of two concurrent reads, the one that began later counts, whichever ends later.
        if latest is not None and latest.read_at > answer.read_at:
            answer = latest
        answers = self._nothing if answer.value is None else self._named
        answers[key] = answer
        while len(answers) > MAX_ANSWERS:
            answers.popitem(last=False)

    def mark_stale(self, key: K) -> None:
        for answers in (self._named, self._nothing):
            if key in answers:
                answers[key] = replace(answers[key], stale=True)

    def pop(self, key: K) -> _StoreAnswer[T] | None:
        return self._named.pop(key, None) or self._nothing.pop(key, None)


class ActivePointers:
    """Reads pointers and versions from the store, and caches the answers for a time to live."""

    def __init__(
        self, store: AdapterStore, *, ttl_seconds: float, outage_seconds: float, answer_seconds: float
    ) -> None:
        """Starts with an empty cache.

        Args:
            store: Is asked.
            ttl_seconds: How long an answer is valid; also the pause between two probes of a store that does not answer.
            outage_seconds: How long an answer counts while the store does not answer, since the last word of the store
                or of the notices.
            answer_seconds: How long a caller waits for the store's answer.
        """
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._outage_seconds = outage_seconds
        self._answer_seconds = answer_seconds
        self._pointers: _Answers[str, ActiveAdapter | None] = _Answers()
        self._versions: _Answers[AdapterRef, LoadedAdapter] = _Answers()
        self._breaker = Breaker(pause_seconds=ttl_seconds)
        # When any answer, and when all of them, were last reported to have changed.
        self._stale_at = 0.0
        self._all_stale_at = 0.0
        # When the notices were last heard, without a gap since `_all_stale_at`.
        self._heard_at = 0.0

    async def resolve(self, student_id: str, *, refresh: bool = False) -> ActiveAdapter | None:
        """Returns the student's active version, or None if the student has none.

        Args:
            student_id: The student.
            refresh: Whether to read the store even if the pointer is cached, and for as long as the store takes.

        Raises:
            AdapterStoreUnavailable: The store does not answer in time, or did not when it was last asked.
            AdapterCorrupt: The pointer does not parse.
        """
        return await self._ask(
            self._pointers, student_id, lambda: self._store.resolve_active(student_id), refresh=refresh
        )

    async def identify(self, ref: AdapterRef, *, refresh: bool = False) -> LoadedAdapter:
        """Returns the identity of a version that a request names.

        Args:
            ref: The version.
            refresh: As for `resolve`.

        Raises:
            ModelVersionNotFound: The student has no such version, or no longer.
            AdapterStoreUnavailable: As for `resolve`.
            AdapterCorrupt: The version's manifest does not parse.
        """

        async def read_identity() -> LoadedAdapter:
            return LoadedAdapter(ref=ref, sha256=await self._store.read_sha256(ref))

        try:
            return await self._ask(self._versions, ref, read_identity, refresh=refresh)
        except ModelVersionNotFound:
            self._versions.pop(ref)
            raise

    async def refresh(self, student_id: str, version: int | None) -> None:
        """Reads the student's pointer again, and the version if one is named. Raises as the two methods above do."""
        await self.resolve(student_id, refresh=True)
        if version is not None:
            await self.identify(self._store.ref(student_id, version), refresh=True)

    def last_known(self, student_id: str) -> ActiveAdapter | None:
        """Returns the active version by the last read, if that still counts during an outage; None if not."""
        return self._last_value(self._pointers.get(student_id))

    def last_known_version(self, ref: AdapterRef) -> LoadedAdapter | None:
        """Returns the version's identity by the last read, if that still counts during an outage; None if not."""
        active = self.last_known(ref.student_id)
        if active is not None and active.ref == ref:
            # A pointer names only a version that exists.
            return LoadedAdapter(ref=ref, sha256=active.sha256)
        return self._last_value(self._versions.get(ref))

    def mark_stale(self, student_id: str) -> None:
        """Makes the student's next request read the pointer again; the cached one stays the last known."""
        self._stale_at = time.monotonic()
        self._pointers.mark_stale(student_id)

    def mark_all_stale(self) -> None:
        """Does the same for every student and every version, in constant time."""
        self._all_stale_at = self._heard_at = time.monotonic()

    def mark_heard(self) -> None:
        """Notes that notices are heard: none was missed since `mark_all_stale` was called."""
        self._heard_at = time.monotonic()

    def forget(self, student_id: str) -> None:
        """Removes all answers about a student from the cache."""
        # A read that is under way may return what was there before.
        self._stale_at = time.monotonic()
        self._pointers.pop(student_id)
        for ref in [ref for ref in self._versions if ref.student_id == student_id]:
            self._versions.pop(ref)

    async def aclose(self) -> None:
        """Cancels the probe that is under way."""
        await self._breaker.aclose()

    async def _ask(self, answers: _Answers[K, T], key: K, call: Callable[[], Awaitable[T]], *, refresh: bool) -> T:
        """Returns the cached answer if it is valid, or else the store's, which it caches."""
        if refresh:
            return await self._read(answers, key, call)
        answer = answers.get(key)
        if answer is not None and self._is_valid(answer, time.monotonic()):
            return answer.value
        if self._breaker.is_open:
            await self._wait_for_probe(self._breaker.probe(lambda: self._read(answers, key, call)))
            return await self._ask(answers, key, call, refresh=False)
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await self._read(answers, key, call)
        except TimeoutError:
            self._breaker.open()
            raise AdapterStoreUnavailable(
                f"the adapter store did not answer within {self._answer_seconds:g} s"
            ) from None

    async def _wait_for_probe(self, probe: asyncio.Task[None] | None) -> None:
        """Waits for the probe that this call began, so that the first call after an outage gets its answer.

        Raises:
            AdapterStoreUnavailable: It began none, or the store does not answer in time.
        """
        if probe is not None:
            await asyncio.wait([probe], timeout=self._answer_seconds)
        if self._breaker.is_open:
            raise AdapterStoreUnavailable("the adapter store did not answer a moment ago; try again in a few seconds")

    async def _read(self, answers: _Answers[K, T], key: K, call: Callable[[], Awaitable[T]]) -> T:
        """Asks the store, and caches its answer."""
        asked_at = time.monotonic()
        try:
            value = await call()
        except AdapterStoreUnavailable:
            self._breaker.open()
            raise
        except AivoError:
            self._breaker.close()
            raise
        self._breaker.close()
        # A read during which something changed may have returned what was before. That is right for this request,
        # which began before, but not for the next.
        answers.put(key, _StoreAnswer(value=value, read_at=asked_at, stale=asked_at <= self._stale_at))
        return value

    def _is_valid(self, answer: _StoreAnswer[T], now: float) -> bool:
        fresh = now - answer.read_at < self._ttl_seconds
        return fresh and not answer.stale and self._is_since_gap(answer)

    def _last_value(self, answer: _StoreAnswer[T] | None) -> T | None:
        if answer is None:
            return None
        confirmed_at = max(answer.read_at, self._heard_at) if self._is_since_gap(answer) else answer.read_at
        return answer.value if time.monotonic() - confirmed_at < self._outage_seconds else None

    def _is_since_gap(self, answer: _StoreAnswer[T]) -> bool:
        return answer.read_at > self._all_stale_at
