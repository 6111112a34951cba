"""The supervisor of one training actor: it starts the actor and its base model, and replaces one that died or is stuck.

An actor that Ray has no room for stays pending, so that a cluster's autoscaler knows what is missing. It does not train
meanwhile.

An actor is stuck if its training thread never ends a step, as when a GPU hangs. Its trainings end after
`TRAIN_TIMEOUT_SECONDS`, and whatever came next would wait for that step too. So whenever a training is closed before
its end, the actor must answer from that thread before it is trusted with more.
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

# Delay before a base model that could not be loaded is loaded again, in case the cause was temporary.
RELOAD_SECONDS = 30.0
# Delay before a dead actor is replaced: one that dies while it starts, as without an installed AIVO, must not spin.
REPLACE_SECONDS = 1.0
# The share of `TRAIN_TIMEOUT_SECONDS` in which the training thread must answer. It answers after the step that it
# computes, for all trainings of the class, and a training has far more than ten steps.
ANSWER_SHARE = 0.1

T = TypeVar("T")

# An actor handle of `TrainingActor`; Ray's own type knows none of the actor's methods.
_Handle: TypeAlias = Any

_log = get_logger(__name__)


class ActorSupervisor:
    """Keeps one actor alive while `supervise` runs, and trains on it.

    Args:
        settings: Settings of the actor, and of its share of Ray.

    Attributes:
        facts: The actor's facts, for health.
        trainings: How many trainings run on the actor.
        is_in_doubt: Whether the actor has yet to show that it is not stuck.
    """

    def __init__(self, settings: CloningSettings) -> None:
        self._settings = settings
        self._actor: _Handle | None = None
        # Done once that actor is abandoned; Ray may never answer a call to it.
        self._abandonment: asyncio.Future[None] = asyncio.Future()
        self.facts = not_ready(settings, "the trainer is starting")
        self.trainings = 0
        self.is_in_doubt = False
        # Done once a training was closed that had not ended.
        self._closing: asyncio.Future[None] = asyncio.Future()

    async def supervise(self) -> NoReturn:
        """Starts the actor and replaces it when needed; cancelling this ends the actor and the trainings on it."""
        factory = ray.remote(TrainingActor).options(
            num_cpus=cpus_of(self._settings), num_gpus=self._settings.trainer_gpus
        )
        while True:
            actor: _Handle = factory.remote(self._settings)
            self._actor, self._abandonment, self._closing = actor, asyncio.Future(), asyncio.Future()
            try:
                await self._watch(actor)
            except RayError as error:
                _log.warning("training_actor_died", error=type(error).__name__)
            except TimeoutError:
                _log.error("training_actor_stuck")
            finally:
                self.facts = not_ready(self._settings, "the training actor ended; another is starting")
                self._actor = None
                self.is_in_doubt = False
                self._abandonment.set_result(None)
                ray.kill(actor)
            await asyncio.sleep(REPLACE_SECONDS)

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Trains; see `Trainer.train`."""
        actor, abandonment = self._actor, self._abandonment
        if actor is None:
            raise TrainerUnavailable(self.facts.reason)
        self.trainings += 1
        items: ObjectRefGenerator = actor.train.options(num_returns="streaming").remote(plan)
        item = None
        try:
            while (item := await _unless(abandonment, _next_of(items))) is not None:
                yield item
        except (GeneratorExit, asyncio.CancelledError):
            # The adapter is the last item, so that nothing is left to compute.
            if not isinstance(item, TrainedAdapter):
                self._doubt(actor)
            raise
        except RayTaskError as error:
            raise _cause_of(error) from None
        except RayError as error:
            raise TrainerUnavailable("the training actor died") from error
        finally:
            self.trainings -= 1
            # No effect on a training that has ended. The process may have disconnected from Ray meanwhile.
            with contextlib.suppress(RayError):
                ray.cancel(items)

    async def _watch(self, actor: _Handle) -> NoReturn:
        """Loads the base model and never returns.

        Raises:
            RayError: The actor died.
            TimeoutError: It is stuck.
        """
        while True:
            try:
                self.facts = await actor.load.remote()
                await self._question(actor)
            except RayTaskError as error:
                reason = str(_cause_of(error))
                _log.warning("base_model_not_loaded", reason=reason)
                self.facts = replace(not_ready(self._settings, reason), device=_device_of(self._settings))
                await asyncio.sleep(RELOAD_SECONDS)

    def _doubt(self, actor: _Handle) -> None:
        """Has the actor show that it is not stuck, unless another has replaced it."""
        if self._actor is actor:
            self.is_in_doubt = True
            if not self._closing.done():
                self._closing.set_result(None)

    async def _question(self, actor: _Handle) -> NoReturn:
        """Has the actor answer from its training thread after each training that was closed; raises as `_watch`."""
        death = asyncio.ensure_future(actor.live.remote())
        try:
            while True:
                await asyncio.wait((death, self._closing), return_when=asyncio.FIRST_COMPLETED)
                if death.done():
                    await death
                self._closing = asyncio.Future()
                async with asyncio.timeout(ANSWER_SHARE * self._settings.train_timeout_seconds):
                    await actor.answer.remote()
                self.is_in_doubt = self._closing.done()
        finally:
            death.cancel()
            await asyncio.gather(death, return_exceptions=True)


async def _next_of(items: ObjectRefGenerator) -> Progress | TrainedAdapter | None:
    """The next item of a training; None once it has ended."""
    try:
        item: Progress | TrainedAdapter = await (await anext(items))
    except StopAsyncIteration:
        return None
    return item


async def _unless(abandonment: asyncio.Future[None], call: Coroutine[None, None, T]) -> T:
    """The result of a call to the actor.

    Raises:
        TrainerUnavailable: The actor was abandoned before the call returned.
    """
    task = asyncio.create_task(call)
    try:
        await asyncio.wait((task, abandonment), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TrainerUnavailable("the training actor ended before it answered")
        return task.result()
    finally:
        task.cancel()


def not_ready(settings: CloningSettings, reason: str) -> TrainerFacts:
    """The facts of a trainer that can't train, with the reason."""
    return TrainerFacts(ready=False, reason=reason, model=settings.base_model, device="", gpu_available=False)


def _cause_of(error: RayTaskError) -> Exception:
    """The actor's exception; for a bug its class alone, as the message may quote training data."""
    cause: BaseException = error.cause
    return cause if isinstance(cause, AivoError) else RuntimeError(f"the trainer failed with {type(cause).__name__}")


def _device_of(settings: CloningSettings) -> str:
    if settings.device != "auto":
        return settings.device.partition(":")[0]
    return "cuda" if settings.trainer_gpus else "cpu"
