"""Health for people: whether clones can be taken and run, and what is missing.

Knows nothing of gRPC.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from cloning_server.registry import Load, Registry
from cloning_server.runner import Brain
from cloning_server.training import Trainer, TrainerFacts
from mesh.adapters.store import AdapterStore
from mesh.errors import AivoError
from mesh.log import get_logger

# A part that takes longer is as good as gone, and whoever asks has a timeout of their own.
CHECK_SECONDS = 1.5
# Health is asked by people and browsers, by many at once; the parts are asked once in their stead.
FRESH_SECONDS = 1.0

CLONE_STORE, ADAPTER_STORE, TRAINER, BRAIN = "clone_store", "adapter_store", "trainer", "brain"

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
    trainer: TrainerFacts
    load: Load
    dependencies: tuple[Dependency, ...]

    @property
    def reason(self) -> str:
        """What is missing; empty if nothing is."""
        fallback = f"{self.trainer.model} trains in place of {self.trainer.fallback_for}"
        parts = [f"{part.name}: {part.reason}" for part in self.dependencies if part.reason]
        return "; ".join([*([fallback] if self.trainer.fallback_for else []), *parts])


class HealthCheck:
    """Asks every part, all at the same time. Open it with `async with`; it then owns the questions under way.

    Args:
        registry: The clone store's face.
        adapters: The adapter store.
        trainer: Trains.
        brain: Answers.
        is_draining: Whether the server was told to stop.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        adapters: AdapterStore,
        trainer: Trainer,
        brain: Brain,
        is_draining: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._trainer = trainer
        self._is_draining = is_draining
        self._load = Load(queued=0, running=0)
        self._clone_store = _Question(CLONE_STORE, self._count)
        self._adapter_store = _Question(ADAPTER_STORE, adapters.check)
        self._brain = _Question(BRAIN, brain.check)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for question in (self._clone_store, self._adapter_store, self._brain):
            await question.drop()

    async def report(self) -> HealthReport:
        """Never fails, and takes no longer than `CHECK_SECONDS`."""
        clone_store, adapter_store, brain = await asyncio.gather(
            self._clone_store.ask(), self._adapter_store.ask(), self._brain.ask()
        )
        facts = self._trainer.facts
        trainer = Dependency(name=TRAINER, reason="" if facts.ready else facts.reason or "not ready")
        parts = (clone_store, adapter_store, trainer, brain)
        load = self._load if clone_store.available else Load(queued=0, running=0)
        return HealthReport(status=self._status(parts, facts), trainer=facts, load=load, dependencies=parts)

    async def _count(self) -> None:
        self._load = await self._registry.load()

    def _status(self, parts: tuple[Dependency, ...], facts: TrainerFacts) -> str:
        missing = {part.name for part in parts if not part.available}
        if self._is_draining():
            return "draining"
        if CLONE_STORE in missing:
            # Nothing can be accepted; without the other parts, clones are accepted and wait for them.
            return "unhealthy"
        # A trainer knows its device once it has loaded, or tried to.
        if missing == {TRAINER} and not facts.device:
            return "loading"
        return "degraded" if missing or facts.fallback_for else "healthy"


class _Question:
    """Whether a part answers: asked one at a time, and once for all who want to know within `FRESH_SECONDS`.

    It outlives who asked: questions to a part that is down take long, and would otherwise pile up and hold the
    connections and threads that the clones need.
    """

    def __init__(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._check = check
        self._asking: asyncio.Task[str] | None = None
        self._answered = -FRESH_SECONDS

    async def ask(self) -> Dependency:
        """Returns the answer, or that there is none."""
        if self._asking is None or (self._asking.done() and time.monotonic() - self._answered > FRESH_SECONDS):
            self._asking = asyncio.create_task(self._why_missing(), name=f"{self._name} check")
        done, _ = await asyncio.wait([self._asking], timeout=CHECK_SECONDS)
        reason = self._asking.result() if done else f"no answer within {CHECK_SECONDS} s"
        return Dependency(name=self._name, reason=reason)

    async def drop(self) -> None:
        """Ends what is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _why_missing(self) -> str:
        try:
            await self._check()
        except AivoError as error:
            return str(error) or error.reason
        except Exception as error:  # noqa: BLE001 - health never fails; what is not a typed fault is a bug, and logged
            _log.exception("check_failed", of=self._name)
            return type(error).__name__
        else:
            return ""
        finally:
            self._answered = time.monotonic()
