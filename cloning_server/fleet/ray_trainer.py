"""The trainer of the cloning server: as many training actors as it was told, on this machine or a Ray cluster.

A clone goes to the actor that trains the fewest; an actor trains its clones as a class. Only actors that are ready
count: while all are pending, loading or dead, no clone is claimed, and the queue holds them for whoever can train.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import ray
from ray.exceptions import RayError

from cloning_server.fleet import ray_node
from cloning_server.fleet.supervisor import ActorSupervisor, not_ready
from cloning_server.settings import CloningSettings
from cloning_server.training import Progress, TrainedAdapter, TrainerFacts, TrainingPlan
from mesh.background import BackgroundTask
from mesh.errors import TrainerUnavailable
from mesh.log import get_logger

# Before Ray is tried again, in case what kept it from starting has passed.
JOIN_SECONDS = 30.0
# How often to look whether Ray's node on this machine has died. Ray itself takes some seconds more to notice.
LOOK_SECONDS = 5.0

_log = get_logger(__name__)


class RayTrainer(BackgroundTask):
    """Trains on Ray. Open it with `async with`; it starts Ray, and the actors, in the background.

    Args:
        settings: Of the base model, of Ray and of the cache; `ray_address` joins a cluster instead of starting one.
    """

    def __init__(self, settings: CloningSettings) -> None:
        self._settings = settings
        self._keepers = [ActorSupervisor(settings) for _ in range(settings.trainers)]
        # Why there are no actors to keep; None once Ray is there.
        self._without_ray: TrainerFacts | None = not_ready(settings, "the trainer is starting")

    @property
    def facts(self) -> TrainerFacts:
        """What health says: of a trainer that is ready, if any is."""
        if self._without_ray is not None:
            return self._without_ray
        return max((keeper.facts for keeper in self._keepers), key=lambda facts: facts.ready)

    @property
    def seats(self) -> int:
        """See `Trainer.seats`."""
        return self._settings.class_size * len(self._ready())

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Trains; see `Trainer.train`."""
        ready = self._ready()
        if not ready:
            raise TrainerUnavailable(self.facts.reason)
        keeper = min(ready, key=lambda one: one.trainings)
        async with aclosing(keeper.train(plan)) as steps:
            async for step in steps:
                yield step

    def _ready(self) -> list[ActorSupervisor]:
        return [keeper for keeper in self._keepers if keeper.facts.ready]

    async def _run(self) -> None:
        while True:
            is_ours = await self._join()
            try:
                await self._keep_until_lost()
            finally:
                if is_ours:
                    await asyncio.to_thread(ray.shutdown)
            self._without_ray = not_ready(self._settings, "Ray died on this machine; it is starting again")
            _log.warning("ray_node_lost")

    async def _keep_until_lost(self) -> None:
        keeping = [asyncio.create_task(keeper.keep(), name="keeper") for keeper in self._keepers]
        try:
            while not await asyncio.to_thread(ray_node.is_lost):
                # A bug that ended one is raised where it is seen.
                done, _ = await asyncio.wait(keeping, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for keeper in done:
                    keeper.result()
        finally:
            for keeper in keeping:
                keeper.cancel()
            await asyncio.wait(keeping)

    async def _join(self) -> bool:
        while True:
            try:
                is_ours = await asyncio.to_thread(ray_node.join, self._settings)
            except (OSError, RuntimeError, RayError) as error:
                _log.warning("ray_unavailable", error=type(error).__name__, why=str(error).partition("\n")[0])
                self._without_ray = not_ready(self._settings, f"Ray does not start ({type(error).__name__})")
                await asyncio.sleep(JOIN_SECONDS)
            else:
                ray_node.take_back_sigterm()
                self._without_ray = None
                return is_ours
