"""Health for people: whether the brain can answer, with what, and what is missing.

Knows nothing of gRPC.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from brain_server.engine.contract import Engine, EngineFacts
from brain_server.safety.settings import SafetyMode
from mesh.adapters.store import AdapterStore
from mesh.alerts.alert_store import AlertStore
from mesh.dependencies import Dependency, DependencyCheck

ADAPTER_STORE, ALERT_STORE = "adapter_store", "alert_store"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainHealthReport:
    """The server's health, in the words of `GetHealthResponse`."""

    status: str
    engine: EngineFacts
    safety: SafetyMode
    dependencies: tuple[Dependency, ...]

    @property
    def model_loaded(self) -> bool:
        """Whether the base model is in memory, whatever else may be wrong."""
        return bool(self.engine.dtype)

    @property
    def reason(self) -> str:
        """What is missing; empty if nothing is."""
        parts = [f"{part.name}: {part.reason}" for part in self.dependencies if part.reason]
        return "; ".join([*filter(None, [self.engine.reason]), *_problems(self.engine), *parts])


class BrainHealthCheck:
    """Asks the engine and the stores. Open it with `async with`; leaving cancels a check that still runs.

    Args:
        engine: Answers.
        adapters: The adapter store.
        safety: What screening does.
        alerts: The alert store; None if the brain has none.
        is_draining: Whether the server was told to stop.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        adapters: AdapterStore,
        safety: SafetyMode = "off",
        alerts: AlertStore | None = None,
        is_draining: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._safety = safety
        self._stores = [DependencyCheck(ADAPTER_STORE, adapters.check)]
        self._stores += [DependencyCheck(ALERT_STORE, alerts.check)] if alerts else []
        self._is_draining = is_draining

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for store in self._stores:
            await store.aclose()

    async def report(self) -> BrainHealthReport:
        """Never fails, and takes no longer than `mesh.dependencies.CHECK_SECONDS`."""
        stores = tuple(await asyncio.gather(*(store.probe() for store in self._stores)))
        facts = self._engine.facts
        return BrainHealthReport(
            status=self._status(facts, stores), engine=facts, safety=self._safety, dependencies=stores
        )

    def _status(self, facts: EngineFacts, stores: Sequence[Dependency]) -> str:
        if self._is_draining():
            return "draining"
        if facts.loading:
            return "loading"
        if not facts.ready:
            return "unhealthy"
        is_down = any(not store.available for store in stores)
        is_degraded = facts.reason or facts.fallback_for or _problems(facts) or is_down
        return "degraded" if is_degraded else "healthy"


def _problems(facts: EngineFacts) -> tuple[str, ...]:
    """Returns why roles of the Main Brain are not used although they are there."""
    return facts.main_brain.problems if facts.main_brain else ()
