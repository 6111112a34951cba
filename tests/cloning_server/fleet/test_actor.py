"""Trainers on Ray: real trainings in processes of their own, their faults, and their death."""

import asyncio
import math
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import psutil
import pytest
import ray

from cloning_server.clone import CloneState
from cloning_server.fleet import supervisor
from cloning_server.fleet.actor import TrainingActor
from cloning_server.fleet.ray_trainer import RayTrainer
from cloning_server.settings import CloningSettings
from cloning_server.training import Progress, TrainedAdapter, TrainingPlan
from mesh.errors import NoTrainableExamples, TrainerUnavailable, TrainingDiverged
from testing.lessons import commented, plan_of
from testing.parts.stores import RedisEndpoint

PLAN = plan_of(commented(2))
# Of one trainer.
SEATS = CloningSettings.model_fields["class_size"].default


def settings_of(redis: RedisEndpoint, cache_dir: Path, **facts: object) -> CloningSettings:
    # Half a core each, so that two actors fit beside each other.
    values = {"redis_url": redis.url, "model_cache_dir": cache_dir.resolve(), "device": "cpu", "trainer_cpus": 0.5}
    return CloningSettings(**(values | facts))  # type: ignore[arg-type] # the fields' own types are checked at run time


@pytest.fixture(scope="module")
async def trainer(redis_endpoint: RedisEndpoint, cache_dir: Path) -> AsyncIterator[RayTrainer]:
    async with RayTrainer(settings_of(redis_endpoint, cache_dir)) as opened:
        assert not opened.facts.ready
        await until_ready(opened)
        yield opened
    assert not ray.is_initialized()


async def until_ready(trainer: RayTrainer, *, trainers: int = 1) -> None:
    while trainer.seats < trainers * SEATS:  # noqa: ASYNC110 - health has no event
        await asyncio.sleep(0.01)


async def train(trainer: RayTrainer, plan: TrainingPlan) -> list[Progress | TrainedAdapter]:
    return [step async for step in trainer.train(plan)]


async def reach(trainer: RayTrainer, state: CloneState) -> None:
    """Trains until a state is reached, and then no more."""
    async with aclosing(trainer.train(PLAN)) as steps:
        async for step in steps:
            if isinstance(step, Progress) and step.state is state:
                return


async def train_and_strike(trainer: RayTrainer, strike: Callable[[], None]) -> None:
    async for step in trainer.train(PLAN):
        if isinstance(step, Progress) and step.state is CloneState.FINE_TUNING:
            strike()


def kill_actor(trainer: RayTrainer) -> None:
    actor = trainer._supervisors[0]._actor
    assert actor is not None
    ray.kill(actor)


def kill_node() -> None:
    for process in psutil.Process().children(recursive=True):
        if process.name() == "raylet":
            process.kill()


async def test_the_actor_trains_from_loading_to_the_adapter(trainer: RayTrainer) -> None:
    *progress, adapter = await train(trainer, PLAN)
    assert isinstance(adapter, TrainedAdapter)
    states = [step.state for step in progress if isinstance(step, Progress)]
    assert list(dict.fromkeys(states)) == [
        CloneState.LOADING_BASE_MODEL,
        CloneState.CREATING_ADAPTER,
        CloneState.FINE_TUNING,
        CloneState.OPTIMIZING,
    ]
    assert trainer.facts.ready
    assert (trainer.facts.model, trainer.facts.device) == (adapter.recipe.base_model, "cpu")


async def test_ray_listens_on_loopback_alone_and_asks_for_its_token(trainer: RayTrainer) -> None:
    assert trainer.facts.ready
    processes = (psutil.Process(), *psutil.Process().children(recursive=True))
    sockets = [socket for process in processes for socket in process.net_connections(kind="inet")]
    hosts = {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert hosts == {"127.0.0.1"}

    async with grpc.aio.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        list_nodes = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", bytes, bytes)
        for token in ((), (("authorization", "Bearer guess"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_nodes(b"", metadata=token)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_training_has_the_lowest_priority_and_the_actor_stays_responsive(trainer: RayTrainer) -> None:
    await train(trainer, PLAN)
    children = psutil.Process().children(recursive=True)
    (actor,) = (process for process in children if "TrainingActor" in " ".join(process.cmdline()))
    busiest = max(actor.threads(), key=lambda thread: thread.user_time)
    assert os.sched_getscheduler(busiest.id) == os.SCHED_IDLE
    assert os.sched_getscheduler(actor.pid) == os.SCHED_OTHER


async def test_errors_keep_their_class_across_processes(trainer: RayTrainer) -> None:
    with pytest.raises(NoTrainableExamples) as few:
        await train(trainer, plan_of(commented(1)))
    assert few.value.facts["responses"] == 1
    with pytest.raises(TrainingDiverged):
        await train(trainer, plan_of(commented(2), epochs=3, learning_rate=math.inf))
    assert isinstance((await train(trainer, PLAN))[-1], TrainedAdapter)


async def test_after_a_training_is_closed_another_can_run(trainer: RayTrainer) -> None:
    await reach(trainer, CloneState.FINE_TUNING)
    assert isinstance((await train(trainer, PLAN))[-1], TrainedAdapter)


async def test_two_trainings_at_once_have_the_same_result(trainer: RayTrainer) -> None:
    # One step each: in several, one may be a step ahead, and bf16 rounds differently beside other neighbours.
    plan = replace(PLAN, batch_examples=16)
    first, second = await asyncio.gather(train(trainer, plan), train(trainer, plan))
    assert isinstance(first[-1], TrainedAdapter)
    assert isinstance(second[-1], TrainedAdapter)
    assert first[-1].recipe.metrics.train_steps == 1
    assert first[-1].weights == second[-1].weights


async def test_a_trainer_that_dies_is_reported_and_replaced(trainer: RayTrainer) -> None:
    with pytest.raises(TrainerUnavailable):
        await train_and_strike(trainer, partial(kill_actor, trainer))
    # Until it is replaced, no training starts.
    with pytest.raises(TrainerUnavailable):
        await train(trainer, PLAN)
    await until_ready(trainer)
    assert isinstance((await train(trainer, PLAN))[-1], TrainedAdapter)


def jammed_actor(jam: TrainingPlan) -> type[TrainingActor]:
    """An actor whose training thread never ends the step of one plan, as when a GPU hangs."""

    # Defined in here, so that Ray sends it by value: the actor's process has no tests.
    class JammedActor(TrainingActor):
        async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
            if plan.seed == jam.seed:
                self._thread.submit(threading.Event().wait)
            async with aclosing(super().train(plan)) as items:
                async for item in items:
                    yield item

    return JammedActor


@pytest.mark.slow
async def test_an_actor_that_does_not_stop_a_training_is_replaced_and_gets_no_clone_before(
    small_folder: Path, redis_endpoint: RedisEndpoint, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jam = replace(PLAN, seed=PLAN.seed + 1)
    monkeypatch.setattr(supervisor, "TrainingActor", jammed_actor(jam))
    # The actor has a tenth of it to answer.
    settings = settings_of(redis_endpoint, cache_dir, base_model=str(small_folder), train_timeout_seconds=20)
    async with RayTrainer(settings) as trainer, asyncio.timeout(60):
        await until_ready(trainer)
        async with aclosing(trainer.train(jam)) as steps:
            await anext(steps)
        assert trainer.seats == 0
        # As a clone that was claimed at the same time.
        with pytest.raises(TrainerUnavailable):
            await train(trainer, PLAN)
        await until_ready(trainer)
        # Whoever has the adapter asks for nothing more, and casts no doubt on the actor.
        async with aclosing(trainer.train(PLAN)) as items:
            async for item in items:
                if isinstance(item, TrainedAdapter):
                    break
        assert trainer.seats > 0


@pytest.mark.slow
async def test_ray_is_joined_again_when_its_node_on_this_machine_dies(trainer: RayTrainer) -> None:
    with pytest.raises(TrainerUnavailable):
        await train_and_strike(trainer, kill_node)
    while trainer.seats:  # noqa: ASYNC110 - health has no event
        await asyncio.sleep(0.01)
    await until_ready(trainer)
    assert isinstance((await train(trainer, PLAN))[-1], TrainedAdapter)


async def test_a_training_goes_to_the_actor_with_the_fewest(
    trainer: RayTrainer, redis_endpoint: RedisEndpoint, cache_dir: Path
) -> None:
    async with RayTrainer(settings_of(redis_endpoint, cache_dir, trainer_cpus=0.25, trainers=2)) as two:
        await until_ready(two, trainers=2)
        assert two.seats == 2 * SEATS
        async with AsyncExitStack() as trainings:
            for _ in range(4):
                steps = await trainings.enter_async_context(aclosing(two.train(PLAN)))
                await anext(steps)
            assert [supervisor.trainings for supervisor in two._supervisors] == [2, 2]
        assert [supervisor.trainings for supervisor in two._supervisors] == [0, 0]


async def test_an_actor_that_ray_has_no_room_for_stays_pending_and_the_others_train(
    trainer: RayTrainer, redis_endpoint: RedisEndpoint, cache_dir: Path
) -> None:
    async with RayTrainer(settings_of(redis_endpoint, cache_dir, trainer_cpus=0.4, trainers=2)) as two:
        await until_ready(two)
        assert isinstance((await train(two, PLAN))[-1], TrainedAdapter)
        assert two.facts.ready
        assert two.seats == SEATS


async def test_a_missing_base_model_is_reported_in_health_and_nothing_is_trained(
    trainer: RayTrainer, redis_endpoint: RedisEndpoint, cache_dir: Path
) -> None:
    async with RayTrainer(settings_of(redis_endpoint, cache_dir, base_model="./nowhere")) as without_base_model:
        async with asyncio.timeout(60):
            while "nowhere" not in without_base_model.facts.reason:  # noqa: ASYNC110 - health has no event
                await asyncio.sleep(0.01)
        facts = without_base_model.facts
        assert (facts.ready, facts.device, without_base_model.seats) == (False, "cpu", 0)
        # Its clones wait for a base model rather than fail.
        with pytest.raises(TrainerUnavailable, match="nowhere"):
            await train(without_base_model, PLAN)
    assert ray.is_initialized()
