"""Training in a separate process: a Ray actor that keeps the base model loaded.

In a separate process, training does not block the server's event loop, and neither process ends when the other crashes.
Ray starts the actor on this machine or, with `RAY_ADDRESS`, on a machine of the cluster. The actor needs its settings
and an installed AIVO, and no file of the server's machine.

Knows nothing of what supervises it.
"""

import asyncio
import os
import traceback
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import torch

from cloning_server.clone import CloneState
from cloning_server.examples.reply_cache import ValkeyReplyCache
from cloning_server.fleet.classroom import Classroom
from cloning_server.fleet.ray_node import cpus_of
from cloning_server.learning.passes import Passes
from cloning_server.learning.trainer import run_training
from cloning_server.settings import CloningSettings
from cloning_server.training import Progress, TrainedAdapter, TrainerFacts, TrainingPlan
from mesh import log
from mesh.errors import AivoError
from mesh.main_brain.base import BaseModel, load_base
from mesh.main_brain.roles import roles_folders

_log = log.get_logger(__name__)


class TrainingActor:
    """The code in the actor's process: one base model, loaded once, and any number of trainings."""

    def __init__(self, settings: CloningSettings) -> None:
        # With more threads than cores, threads wait for each other and torch is many times slower.
        torch.set_num_threads(max(1, round(cpus_of(settings))))
        log.configure(
            level=settings.log_level,
            form=settings.log_format,
            service="cloning_trainer",
            packages=("cloning_server", "mesh"),
        )
        self._settings = settings
        self._cache = ValkeyReplyCache(
            settings.redis_url, tenant=settings.tenant, ttl_seconds=settings.reply_cache_seconds
        )
        self._base: tuple[BaseModel, Passes] | None = None
        # All of torch runs in one thread, so that the event loop's thread stays responsive.
        initializer = None if settings.trainer_gpus else _lower_priority
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training", initializer=initializer)
        self._classroom = Classroom(self._thread, size=settings.class_size)
        self._loading = asyncio.Lock()

    async def load(self) -> TrainerFacts:
        """Loads the base model unless it is loaded.

        Raises:
            BaseModelUnavailable: The base model can't be loaded.
        """
        base, _ = await self._load_once()
        return _facts_of(base, configured=self._settings.base_model)

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Trains; see `Trainer.train`. Cancelling it ends the training at its next step; see `answer`."""
        loading = CloneState.LOADING_BASE_MODEL
        yield Progress(state=loading, fraction=0.0, message="Loading the base model")
        base, passes = await self._load_once()
        yield Progress(state=loading, fraction=1.0, message=f"{base.name} is loaded")
        try:
            run = run_training(plan, base, passes, cache=self._cache)
            async with aclosing(self._classroom.attend(run)) as items:
                async for item in items:
                    yield item
        except AivoError:
            raise
        except Exception as error:
            # The place without the message: an error message of torch may quote training data.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("training_crashed", clone_id=plan.clone_id, error=type(error).__name__, trace=trace)
            raise

    async def live(self) -> None:
        """Never returns: awaiting it detects the actor's death."""
        await asyncio.Event().wait()

    async def answer(self) -> None:
        """Returns once the training thread does: after what it computes now, or never if it is stuck."""
        await asyncio.get_running_loop().run_in_executor(self._thread, _return)

    async def _load_once(self) -> tuple[BaseModel, Passes]:
        async with self._loading:
            if self._base is None:
                self._base = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
            return self._base

    def _load(self) -> tuple[BaseModel, Passes]:
        base = load_base(
            self._settings.base_model,
            cache_dir=self._settings.model_cache_dir,
            roles_dirs=roles_folders(self._settings.roles_dir),
            device=self._settings.device,
            dtype=self._settings.dtype,
            quantization=self._settings.quantization,
            allow_fallback=self._settings.allow_fallback_model,
        )
        return base, Passes(base.model)


def _facts_of(base: BaseModel, *, configured: str) -> TrainerFacts:
    return TrainerFacts(
        ready=True,
        reason="",
        model=base.name,
        device=base.device.type,
        gpu_available=torch.cuda.is_available(),
        fallback_for=configured if base.fallback_from else "",
        main_brain=base.digest,
        problems=base.main_brain.problems,
    )


def _return() -> None:
    """Does nothing, in its turn."""


def _lower_priority() -> None:
    """Lets other processes on the same cores, which decode replies, run before this thread and its torch threads.

    A smaller share of the cores, which Ray's workers have, is not enough: the threads of a reply wait for each other at
    each of a step's thousand operations, so one thread that waits for a core delays them all.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
