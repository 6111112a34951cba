"""Trainings that run by themselves, for tests."""

from dataclasses import dataclass

from cloning_server.learning.passes import Passes
from cloning_server.learning.trainer import run_training
from cloning_server.learning.training_run import run_alone
from cloning_server.training import Progress, TrainedAdapter, TrainingPlan
from mesh.main_brain.base import BaseModel
from testing.lessons import DictReplyCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training that has ended.

    Attributes:
        progress: Everything that it yielded before the adapter.
        adapter: Its result.
    """

    progress: list[Progress]
    adapter: TrainedAdapter


def train_alone(plan: TrainingPlan, base: BaseModel, passes: Passes) -> Training:
    """Trains one adapter, with an empty reply cache.

    Raises:
        AivoError: See `run_training`.
    """
    items: list[Progress | TrainedAdapter] = []
    run_alone(run_training(plan, base, passes, cache=DictReplyCache()), watch=items.append)
    *progress, adapter = items
    assert isinstance(adapter, TrainedAdapter)
    return Training(progress=[item for item in progress if isinstance(item, Progress)], adapter=adapter)
