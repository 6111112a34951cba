"""Joining Ray on a machine that is too busy to start it in time."""

import asyncio

import pytest
import ray

from cloning_server.fleet import ray_trainer
from cloning_server.fleet.ray_trainer import RayTrainer
from cloning_server.settings import CloningSettings


async def test_ray_that_does_not_start_in_time_is_joined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0
    joined_again = asyncio.Event()
    loop = asyncio.get_running_loop()

    def time_out(**_options: object) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            loop.call_soon_threadsafe(joined_again.set)
        # The class that Ray raises.
        raise Exception("The current node timed out during startup.")  # noqa: TRY002

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    monkeypatch.setattr(ray_trainer, "REJOIN_SECONDS", 0.01)
    async with RayTrainer(CloningSettings()) as trainer, asyncio.timeout(10):
        await joined_again.wait()
        assert not trainer.facts.ready
        assert "Ray does not start" in trainer.facts.reason
