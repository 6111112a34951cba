"""Training in a process of its own: a Ray actor that keeps the base model loaded, and the trainer that owns it.

A process of its own keeps the server's event loop free of the training's work, and a crash of the one from ending the
other; Ray puts it on this machine or, with `RAY_ADDRESS`, on a cluster's. The actor is made anew when it dies.
"""

import asyncio
import contextlib
import os
import signal
import threading
import traceback
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn, Self, TypeAlias

import ray
import torch
from ray import ObjectRefGenerator
from ray.exceptions import RayActorError, RayTaskError

from cloning_server.classroom import Classroom
from cloning_server.clone import CloneState
from cloning_server.reply_cache import ValkeyReplyCache
from cloning_server.settings import CloningSettings
from cloning_server.trainer import study
from cloning_server.training import Progress, Trained, TrainerFacts, TrainingPlan
from mesh import log
from mesh.errors import AivoError, TrainerUnavailable
from mesh.lm.architecture import require_supported
from mesh.lm.base import BaseModel, load_base

# What a plan, its progress and its adapter need is small; Ray's default is a third of the machine's memory.
OBJECT_STORE_BYTES = 128 * 1024 * 1024
# Before Ray, or a base model that could not be loaded, is tried again, in case the cause has passed.
RELOAD_SECONDS = 30.0

_log = log.get_logger(__name__)


class TrainingActor:
    """What runs in the actor's process: one base model, loaded once, and any number of trainings."""

    def __init__(self, settings: CloningSettings) -> None:
        # More threads than cores to run on wait for each other, and slow torch down many times over.
        torch.set_num_threads(max(1, round(_cpus(settings))))
        log.configure(level=settings.log_level, form=settings.log_format, service="cloning_trainer")
        self._settings = settings
        self._cache = ValkeyReplyCache(settings.redis_url)
        self._base: BaseModel | None = None
        # All of torch runs in one thread, so that this one answers while it does.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training")
        self._classroom = Classroom(self._thread, size=settings.class_size)
        self._loading = asyncio.Lock()

    async def load(self) -> TrainerFacts:
        """Loads the base model unless it is loaded.

        Raises:
            BaseModelUnavailable: If it can't be loaded.
        """
        return _facts_of(await self._loaded(), wanted=self._settings.base_model)

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | Trained, None]:
        """Trains; see `Trainer.train`. Cancelling it ends the training at its next step."""
        loading = CloneState.LOADING_BASE_MODEL
        yield Progress(state=loading, fraction=0.0, message="Loading the base model")
        base = await self._loaded()
        yield Progress(state=loading, fraction=1.0, message=f"{base.name} is loaded")
        try:
            async with aclosing(self._classroom.attend(study(plan, base, cache=self._cache))) as steps:
                async for step in steps:
                    yield step
        except AivoError:
            raise
        except Exception as error:
            # Where, not what: the message of a fault of torch may quote what was trained on.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("training_broke", clone_id=plan.clone_id, error=type(error).__name__, trace=trace)
            raise

    async def live(self) -> None:
        """Never returns: whoever awaits it learns of the actor's death."""
        await asyncio.Event().wait()

    async def _loaded(self) -> BaseModel:
        async with self._loading:
            if self._base is None:
                self._base = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
            return self._base

    def _load(self) -> BaseModel:
        base = load_base(
            self._settings.base_model,
            cache_dir=self._settings.model_cache_dir,
            device=self._settings.device,
            dtype=self._settings.dtype,
            quantization=self._settings.quantization,
            allow_fallback=self._settings.allow_fallback_model,
        )
        require_supported(base.model)
        return base


# An actor handle of `TrainingActor`; Ray's own type knows none of the actor's methods.
_Handle: TypeAlias = Any


class RayTrainer:
    """The trainer of the cloning server. Open it with `async with`; it starts Ray, and the actor, in the background.

    Args:
        settings: Of the base model, of Ray and of the cache; `ray_address` joins a cluster instead of starting one.
    """

    def __init__(self, settings: CloningSettings) -> None:
        self._settings = settings
        self._facts = _not_ready(settings, "the trainer is starting")
        # Set once an actor is there, and replaced when that one has died.
        self._actor: asyncio.Future[_Handle] = asyncio.Future()
        self._keeper: asyncio.Task[None] | None = None
        self._owns_ray = False

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_actor(), name="trainer")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._keeper is not None
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        if self._owns_ray:
            await asyncio.to_thread(ray.shutdown)

    @property
    def facts(self) -> TrainerFacts:
        """What health says."""
        return self._facts

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | Trained, None]:
        """Trains; see `Trainer.train`. Waits for Ray and the actor if they are not there yet."""
        actor = await asyncio.shield(self._actor)
        steps: ObjectRefGenerator = actor.train.options(num_returns="streaming").remote(plan)
        try:
            async for step in steps:
                yield await step
        except RayTaskError as error:
            raise _cause_of(error) from None
        except RayActorError as error:
            raise TrainerUnavailable("the training actor died") from error
        finally:
            # Does nothing to a training that ended.
            ray.cancel(steps)

    async def _keep_actor(self) -> None:
        await self._join_ray()
        make = ray.remote(TrainingActor)
        while True:
            options = make.options(num_cpus=_cpus(self._settings), num_gpus=self._settings.trainer_gpus)
            actor: _Handle = options.remote(self._settings)
            self._actor.set_result(actor)
            try:
                await self._watch(actor)
            except RayActorError:
                _log.warning("training_actor_died")
                self._facts = _not_ready(self._settings, "the training actor died; another is starting")
                self._actor = asyncio.Future()
            finally:
                ray.kill(actor)

    async def _join_ray(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._start_ray)
            except (OSError, RuntimeError) as error:
                _log.warning("ray_unavailable", error=type(error).__name__)
                self._facts = _not_ready(self._settings, f"Ray does not start ({type(error).__name__})")
                await asyncio.sleep(RELOAD_SECONDS)
            else:
                _take_back_sigterm()
                return

    async def _watch(self, actor: _Handle) -> NoReturn:
        """Loads the base model and returns never; raises when the actor dies."""
        while True:
            try:
                self._facts = await actor.load.remote()
                await actor.live.remote()
            except RayTaskError as error:
                reason = str(_cause_of(error))
                _log.warning("base_model_not_loaded", reason=reason)
                self._facts = replace(_not_ready(self._settings, reason), device=_device_of(self._settings))
                await asyncio.sleep(RELOAD_SECONDS)

    def _start_ray(self) -> None:
        # Ray reads these when it starts: nothing is reported to its makers, and its workers leave CUDA's choice alone.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if ray.is_initialized():
            return
        self._owns_ray = True
        if self._settings.ray_address:
            ray.init(address=self._settings.ray_address, log_to_driver=False, configure_logging=False)
            return
        ray.init(
            # Never a cluster that someone else left running on this machine.
            address="local",
            num_cpus=max(1, round(_cpus(self._settings))),
            num_gpus=torch.cuda.device_count() if self._settings.trainer_gpus else 0,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=True,
            configure_logging=False,
        )


def _take_back_sigterm() -> None:
    """Undoes that Ray, when it starts, takes SIGTERM for a crash and aborts the process three seconds after it.

    Its C++ core sets the handler past Python's back; setting the one again that Python knows of ousts it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _cause_of(error: RayTaskError) -> Exception:
    """What the actor raised; of a bug no more than its class, as its text may quote what was trained on."""
    cause: BaseException = error.cause
    return cause if isinstance(cause, AivoError) else RuntimeError(f"the trainer failed with {type(cause).__name__}")


def _cpus(settings: CloningSettings) -> float:
    return settings.trainer_cpus or os.cpu_count() or 1


def _device_of(settings: CloningSettings) -> str:
    if settings.device != "auto":
        return settings.device.partition(":")[0]
    return "cuda" if settings.trainer_gpus else "cpu"


def _facts_of(base: BaseModel, *, wanted: str) -> TrainerFacts:
    return TrainerFacts(
        ready=True,
        reason="",
        model=base.name,
        device=base.device.type,
        gpu_available=torch.cuda.is_available(),
        fallback_for=wanted if base.fallback_from else "",
    )


def _not_ready(settings: CloningSettings, reason: str) -> TrainerFacts:
    return TrainerFacts(ready=False, reason=reason, model=settings.base_model, device="", gpu_available=False)
