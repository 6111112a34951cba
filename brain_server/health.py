"""Health for people: whether the brain can answer, with what, and what is missing.

Knows nothing of gRPC.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from brain_server.engine import Engine, EngineFacts
from mesh.adapters.store import AdapterStore
from mesh.errors import AivoError
from mesh.log import get_logger

# A store that takes longer is as good as gone, and whoever asks has a timeout of their own.
CHECK_SECONDS = 1.5
# Health is asked by people and browsers, by many at once; the store is asked once in their stead.
FRESH_SECONDS = 1.0

ADAPTER_STORE = "adapter_store"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A part the server leans on; the reason is empty if it is available."""

    name: str
    reason: str

    @property
    def available(self) -> bool:
        """Whether it answers."""
        return not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """The server's health, in the words of `GetHealthResponse`."""

    status: str
    engine: EngineFacts
    dependencies: tuple[Dependency, ...]

    @property
    def model_loaded(self) -> bool:
        """Whether the base model is in memory, whatever else may be amiss."""
        return bool(self.engine.dtype)

    @property
    def reason(self) -> str:
        """What is missing; empty if nothing is."""
        parts = [f"{part.name}: {part.reason}" for part in self.dependencies if part.reason]
        return "; ".join([*filter(None, [self.engine.reason]), *parts])


class HealthCheck:
    """Asks the engine and the adapter store. Open it with `async with`; it then owns the question under way.

    Args:
        engine: Answers.
        adapters: The adapter store.
        is_draining: Whether the server was told to stop.
    """

    def __init__(self, engine: Engine, *, adapters: AdapterStore, is_draining: Callable[[], bool]) -> None:
        self._engine = engine
        self._adapters = adapters
        self._is_draining = is_draining
        self._asking: asyncio.Task[str] | None = None
        self._answered = -FRESH_SECONDS

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def report(self) -> HealthReport:
        """Never fails, and takes no longer than `CHECK_SECONDS`."""
        store = Dependency(name=ADAPTER_STORE, reason=await self._why_store_is_missing())
        facts = self._engine.facts
        return HealthReport(status=self._status(facts, store), engine=facts, dependencies=(store,))

    def _status(self, facts: EngineFacts, store: Dependency) -> str:
        if self._is_draining():
            return "draining"
        if facts.loading:
            return "loading"
        if not facts.ready:
            return "unhealthy"
        return "degraded" if facts.reason or facts.fallback_for or not store.available else "healthy"

    async def _why_store_is_missing(self) -> str:
        # One question at a time, which outlives who asked it: questions to a store that is down take long, and would
        # otherwise pile up and hold the threads that fetches need.
        if self._asking is None or (self._asking.done() and time.monotonic() - self._answered > FRESH_SECONDS):
            self._asking = asyncio.create_task(self._ask_store(), name="adapter store check")
        done, _ = await asyncio.wait([self._asking], timeout=CHECK_SECONDS)
        return self._asking.result() if done else f"no answer within {CHECK_SECONDS} s"

    async def _ask_store(self) -> str:
        try:
            await self._adapters.check()
        except AivoError as error:
            return str(error) or error.reason
        except Exception as error:  # noqa: BLE001 - health never fails; what is not a typed fault is a bug, and logged
            _log.exception("adapter_store_check_failed")
            return type(error).__name__
        else:
            return ""
        finally:
            self._answered = time.monotonic()
