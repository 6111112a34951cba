"""Training in a process of its own: a Ray actor that keeps the base model loaded.

A process of its own keeps the server's event loop free of the training's work, and a crash of the one from ending the
other; Ray puts it on this machine or, with `RAY_ADDRESS`, on a cluster's. Whatever the actor needs comes with its
settings or is installed where it runs: a cluster's machine knows nothing of the server's folder.

Knows nothing of who keeps it alive.
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
from cloning_server.learning.trainer import study
from cloning_server.settings import CloningSettings
from cloning_server.training import Progress, TrainedAdapter, TrainerFacts, TrainingPlan
from mesh import log
from mesh.errors import AivoError
from mesh.lm.base import BaseModel, load_base
from mesh.lm.llama_shape import require_supported

_log = log.get_logger(__name__)


class TrainingActor:
    """What runs in the actor's process: one base model, loaded once, and any number of trainings."""

    def __init__(self, settings: CloningSettings) -> None:
        # More threads than cores to run on wait for each other, and slow torch down many times over.
        torch.set_num_threads(max(1, round(cpus_of(settings))))
        log.configure(
            level=settings.log_level,
            form=settings.log_format,
            service="cloning_trainer",
            packages=("cloning_server", "mesh"),
        )
        self._settings = settings
        self._cache = ValkeyReplyCache(settings.redis_url)
        self._base: BaseModel | None = None
        # All of torch runs in one thread, so that this one answers while it does.
        give_way = None if settings.trainer_gpus else _give_way
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training", initializer=give_way)
        self._classroom = Classroom(self._thread, size=settings.class_size)
        self._loading = asyncio.Lock()

    async def load(self) -> TrainerFacts:
        """Loads the base model unless it is loaded.

        Raises:
            BaseModelUnavailable: If it can't be loaded.
        """
        return _facts_of(await self._loaded(), wanted=self._settings.base_model)

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
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


def _facts_of(base: BaseModel, *, wanted: str) -> TrainerFacts:
    return TrainerFacts(
        ready=True,
        reason="",
        model=base.name,
        device=base.device.type,
        gpu_available=torch.cuda.is_available(),
        fallback_for=wanted if base.fallback_from else "",
    )


def _give_way() -> None:
    """Lets whoever decodes replies on the same cores go first: this thread, and those of torch that it starts.

    A lower share of the cores, which Ray's workers have, is not enough: at each of a step's thousand operations the
    threads of a reply would wait until the one of them that training keeps from running has its turn.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
