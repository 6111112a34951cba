"""Keeps one training actor alive: makes it, has it load the base model, trains on it, makes another when it dies.

An actor that Ray has no room for stays pending, so that the autoscaler of a cluster sees what is missing. Nothing is
trained on it meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias, TypeVar

import ray
from ray import ObjectRefGenerator
from ray.exceptions import RayError, RayTaskError

from cloning_server.fleet.actor import TrainingActor
from cloning_server.fleet.ray_node import cpus_of
from cloning_server.settings import CloningSettings
from cloning_server.training import Progress, TrainedAdapter, TrainerFacts, TrainingPlan
from mesh.errors import AivoError, TrainerUnavailable
from mesh.log import get_logger

# Before a base model that could not be loaded is tried again, in case the cause has passed.
RELOAD_SECONDS = 30.0
# Before an actor that died is replaced: one that dies as it starts, as where AIVO is not installed, would spin.
REPLACE_SECONDS = 1.0

T = TypeVar("T")

# An actor handle of `TrainingActor`; Ray's own type knows none of the actor's methods.
_Handle: TypeAlias = Any

_log = get_logger(__name__)


class ActorSupervisor:
    """Keeps one actor while `keep` runs.

    Args:
        settings: Of the actor, and of what it takes from Ray.

    Attributes:
        facts: What health says.
        trainings: How many run on the actor.
    """

    def __init__(self, settings: CloningSettings) -> None:
        self._settings = settings
        self._actor: _Handle | None = None
        # Done once that actor is given up; Ray may never answer for what was asked of it.
        self._gone: asyncio.Future[None] = asyncio.Future()
        self.facts = not_ready(settings, "the trainer is starting")
        self.trainings = 0

    async def keep(self) -> NoReturn:
        """Keeps an actor; cancelling this ends it, and the trainings on it."""
        make = ray.remote(TrainingActor).options(num_cpus=cpus_of(self._settings), num_gpus=self._settings.trainer_gpus)
        while True:
            actor: _Handle = make.remote(self._settings)
            self._actor, self._gone = actor, asyncio.Future()
            try:
                await self._watch(actor)
            except RayError as error:
                _log.warning("training_actor_died", error=type(error).__name__)
            finally:
                self.facts = not_ready(self._settings, "the training actor died; another is starting")
                self._actor = None
                self._gone.set_result(None)
                ray.kill(actor)
            await asyncio.sleep(REPLACE_SECONDS)

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Trains; see `Trainer.train`."""
        actor, gone = self._actor, self._gone
        if actor is None:
            raise TrainerUnavailable(self.facts.reason)
        self.trainings += 1
        steps: ObjectRefGenerator = actor.train.options(num_returns="streaming").remote(plan)
        try:
            while (step := await _unless(gone, _next_of(steps))) is not None:
                yield step
        except RayTaskError as error:
            raise _cause_of(error) from None
        except RayError as error:
            raise TrainerUnavailable("the training actor died") from error
        finally:
            self.trainings -= 1
            # Does nothing to a training that ended. Ray may have been left meanwhile.
            with contextlib.suppress(RayError):
                ray.cancel(steps)

    async def _watch(self, actor: _Handle) -> NoReturn:
        """Loads the base model and returns never; raises when the actor dies."""
        while True:
            try:
                self.facts = await actor.load.remote()
                await actor.live.remote()
            except RayTaskError as error:
                reason = str(_cause_of(error))
                _log.warning("base_model_not_loaded", reason=reason)
                self.facts = replace(not_ready(self._settings, reason), device=_device_of(self._settings))
                await asyncio.sleep(RELOAD_SECONDS)


async def _next_of(steps: ObjectRefGenerator) -> Progress | TrainedAdapter | None:
    """What the training yields next; None once it has ended."""
    try:
        step: Progress | TrainedAdapter = await (await anext(steps))
    except StopAsyncIteration:
        return None
    return step


async def _unless(gone: asyncio.Future[None], step: Coroutine[None, None, T]) -> T:
    """The outcome of a step.

    Raises:
        TrainerUnavailable: The actor was given up before there was one.
    """
    taken = asyncio.create_task(step)
    try:
        await asyncio.wait((taken, gone), return_when=asyncio.FIRST_COMPLETED)
        if not taken.done():
            raise TrainerUnavailable("the training actor was given up")
        return taken.result()
    finally:
        taken.cancel()


def not_ready(settings: CloningSettings, reason: str) -> TrainerFacts:
    """The facts of a trainer that can't train, and why."""
    return TrainerFacts(ready=False, reason=reason, model=settings.base_model, device="", gpu_available=False)


def _cause_of(error: RayTaskError) -> Exception:
    """What the actor raised; of a bug no more than its class, as its text may quote what was trained on."""
    cause: BaseException = error.cause
    return cause if isinstance(cause, AivoError) else RuntimeError(f"the trainer failed with {type(cause).__name__}")


def _device_of(settings: CloningSettings) -> str:
    if settings.device != "auto":
        return settings.device.partition(":")[0]
    return "cuda" if settings.trainer_gpus else "cpu"
