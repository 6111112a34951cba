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
    task_faults: tuple[str, ...]

    @property
    def model_loaded(self) -> bool:
        """Whether the base model is in memory, whatever else may be wrong."""
        return bool(self.engine.dtype)

    @property
    def reason(self) -> str:
        """What is missing; empty if nothing is."""
        parts = [f"{part.name}: {part.reason}" for part in self.dependencies if part.reason]
        engine_reasons = [self.engine.reason] if self.engine.reason else []
        # The engine is a background task too, and its reason says so already.
        task_faults = [fault for fault in self.task_faults if fault != self.engine.reason]
        return "; ".join([*engine_reasons, *_problems(self.engine), *task_faults, *parts])


class BrainHealthCheck:
    """Asks the engine and the stores. Open it with `async with`; leaving cancels a check that still runs.

    Args:
        engine: Answers.
        adapters: The adapter store.
        safety: What screening does.
        alerts: The alert store; None if the brain has none.
        is_draining: Whether the server was told to stop.
        task_faults: Returns why background tasks do not run.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        adapters: AdapterStore,
        safety: SafetyMode = "off",
        alerts: AlertStore | None = None,
        is_draining: Callable[[], bool],
        task_faults: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._engine = engine
        self._safety = safety
        self._stores = [DependencyCheck(ADAPTER_STORE, adapters.check)]
        self._stores += [DependencyCheck(ALERT_STORE, alerts.check)] if alerts else []
        self._is_draining = is_draining
        self._task_faults = task_faults

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
        facts, task_faults = self._engine.facts, self._task_faults()
        return BrainHealthReport(
            status=self._status(facts, stores, task_faults),
            engine=facts,
            safety=self._safety,
            dependencies=stores,
            task_faults=task_faults,
        )

    def _status(self, facts: EngineFacts, stores: Sequence[Dependency], task_faults: Sequence[str]) -> str:
        if self._is_draining():
            return "draining"
        if facts.loading:
            return "loading"
        if not facts.ready:
            return "unhealthy"
        is_down = any(not store.available for store in stores)
        is_degraded = facts.reason or facts.fallback_for or _problems(facts) or is_down or task_faults
        return "degraded" if is_degraded else "healthy"


def _problems(facts: EngineFacts) -> tuple[str, ...]:
    """Returns why roles of the Main Brain are not used although they are there."""
    return facts.main_brain.problems if facts.main_brain else ()
