"""The trainer of the cloning server: `TRAINERS` training actors, on this machine or in a Ray cluster.

A clone goes to the actor with the fewest trainings; an actor trains its clones as a class. Only ready actors count:
while all are pending, loading, in doubt or dead, this server claims no clone, and the queue holds clones for other
servers.
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

# Delay before the next attempt to join Ray, in case the cause of the failure was temporary.
REJOIN_SECONDS = 30.0
# How often to check whether Ray's node on this machine has died. Ray itself takes some more seconds to notice.
NODE_CHECK_SECONDS = 5.0

_log = get_logger(__name__)


class RayTrainer(BackgroundTask):
    """Trains on Ray. Open it with `async with`; it starts Ray and the actors in the background.

    Args:
        settings: Settings of the base model, Ray and the cache; `ray_address` joins a cluster instead of starting one.
    """

    def __init__(self, settings: CloningSettings) -> None:
        self._settings = settings
        self._supervisors = [ActorSupervisor(settings) for _ in range(settings.trainers)]
        # The facts while Ray is not joined; None while it is.
        self._without_ray: TrainerFacts | None = not_ready(settings, "the trainer is starting")

    @property
    def facts(self) -> TrainerFacts:
        """The facts of an actor that is ready, if any is."""
        if self._without_ray is not None:
            return self._without_ray
        return max((supervisor.facts for supervisor in self._supervisors), key=lambda facts: facts.ready)

    @property
    def seats(self) -> int:
        """See `Trainer.seats`."""
        return self._settings.class_size * sum(not supervisor.is_in_doubt for supervisor in self._ready())

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Trains; see `Trainer.train`."""
        ready = self._ready()
        if not ready:
            raise TrainerUnavailable(self.facts.reason)
        # A clone that was claimed before the doubt came up had better wait for its end than come back later.
        supervisor = min(ready, key=lambda candidate: (candidate.is_in_doubt, candidate.trainings))
        async with aclosing(supervisor.train(plan)) as items:
            async for item in items:
                yield item

    def _ready(self) -> list[ActorSupervisor]:
        return [supervisor for supervisor in self._supervisors if supervisor.facts.ready]

    async def _run(self) -> None:
        while True:
            is_ours = await self._join()
            try:
                await self._supervise_until_lost()
            finally:
                if is_ours:
                    await asyncio.to_thread(ray.shutdown)
            self._without_ray = not_ready(self._settings, "Ray died on this machine; it is starting again")
            _log.warning("ray_node_lost")

    async def _supervise_until_lost(self) -> None:
        """Runs the supervisors until Ray's node on this machine is lost."""
        tasks = [asyncio.create_task(supervisor.supervise(), name="supervisor") for supervisor in self._supervisors]
        try:
            while not await asyncio.to_thread(ray_node.is_lost):
                done, _ = await asyncio.wait(tasks, timeout=NODE_CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    # Raises the bug that ended the supervisor.
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _join(self) -> bool:
        """Joins Ray, however often that takes; returns whether to shut it down at the end."""
        while True:
            try:
                is_ours = await asyncio.to_thread(ray_node.join, self._settings)
            except (OSError, RuntimeError, RayError) as error:
                _log.warning("ray_unavailable", error=type(error).__name__, reason=str(error).partition("\n")[0])
                self._without_ray = not_ready(self._settings, f"Ray does not start ({type(error).__name__})")
                await asyncio.sleep(REJOIN_SECONDS)
            else:
                ray_node.restore_sigterm()
                self._without_ray = None
                return is_ours
