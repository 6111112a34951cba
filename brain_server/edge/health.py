"""Health for people: whether the brain can answer, with what, and what is missing.

Knows nothing of gRPC.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from brain_server.engine.contract import Engine, EngineFacts
from brain_server.safety.settings import SafetyMode
from mesh.adapters.store import AdapterStore
from mesh.dependencies import Dependency, DependencyCheck

ADAPTER_STORE = "adapter_store"


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
    """Asks the engine and the adapter store. Open it with `async with`; leaving cancels a check that still runs.

    Args:
        engine: Answers.
        adapters: The adapter store.
        safety: What screening does.
        is_draining: Whether the server was told to stop.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        adapters: AdapterStore,
        safety: SafetyMode = "off",
        is_draining: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._safety = safety
        self._adapters = DependencyCheck(ADAPTER_STORE, adapters.check)
        self._is_draining = is_draining

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._adapters.aclose()

    async def report(self) -> BrainHealthReport:
        """Never fails, and takes no longer than `mesh.dependencies.CHECK_SECONDS`."""
        store = await self._adapters.probe()
        facts = self._engine.facts
        return BrainHealthReport(
            status=self._status(facts, store), engine=facts, safety=self._safety, dependencies=(store,)
        )

    def _status(self, facts: EngineFacts, store: Dependency) -> str:
        if self._is_draining():
            return "draining"
        if facts.loading:
            return "loading"
        if not facts.ready:
            return "unhealthy"
        is_degraded = facts.reason or facts.fallback_for or _problems(facts) or not store.available
        return "degraded" if is_degraded else "healthy"


def _problems(facts: EngineFacts) -> tuple[str, ...]:
    """Returns why roles of the Main Brain are not used although they are there."""
    return facts.main_brain.problems if facts.main_brain else ()
