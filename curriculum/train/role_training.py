"""What the training of any role is given, does and makes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.passes import Passes
from curriculum.train.training import Objective, RoleExample, RoleSettings, StepReport, train
from mesh.adapters.manifest import Serving
from mesh.lm.guarding import HarmCategory
from mesh.lm.lora import from_safetensors
from mesh.main_brain.base import BaseModel
from mesh.main_brain.role_manifest import Calibration
from mesh.tutoring.profile import GradeBand


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFactors:
    """What a training made.

    Attributes:
        weights: Factors by PEFT's names, bf16.
        settings: How they were trained.
        evaluation: Figures on held-out data, by name.
        data_digests: sha256 of the data, by name.
        examples: How many examples there were.
        labels: The labels of a grader or guard; empty for a tutor.
        calibration: The calibration of a grader or guard.
        thresholds: A guard's thresholds.
        serving: How the Main Brain decodes with this tutor.
    """

    weights: dict[str, torch.Tensor]
    settings: RoleSettings
    evaluation: dict[str, float]
    data_digests: dict[str, str]
    examples: int
    labels: tuple[str, ...] = ()
    calibration: Calibration | None = None
    thresholds: dict[HarmCategory, dict[GradeBand, float]] | None = None
    serving: Serving | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTraining:
    """What every training needs.

    Attributes:
        base: What the role is trained on.
        sets: Folder of the public sets, with `grading`, `explanations` and `safety`; None: the project's own.
        settings: How to train.
        starts: Files of earlier versions of the role; the training begins with their mean (Wortsman et al., 2022), or
            with fresh factors if there are none.
        checkpoint: Where the training is saved; None: nowhere.
        watch: Called at every step.
    """

    base: BaseModel
    sets: Path | None
    settings: RoleSettings
    starts: Sequence[bytes]
    checkpoint: Path | None
    watch: Callable[[StepReport], None]


def fit(training: RoleTraining, passes: Passes, examples: Sequence[RoleExample], objective: Objective) -> LoraFactors:
    """Returns the factors that a training makes of its examples.

    Raises:
        AdapterIncompatible: An earlier version has other modules, other widths or a higher rank.
        TrainingDiverged: A loss or a gradient is not finite.
    """
    settings = training.settings
    factors = LoraFactors(training.base.model, settings.lora, seed=settings.seed)
    if training.starts:
        _begin_with_mean(factors, training.starts)
    origin = f"{training.base.digest} {hashlib.sha256(b''.join(training.starts)).hexdigest()}"
    train(
        passes,
        factors,
        examples,
        objective,
        settings,
        origin=origin,
        checkpoint=training.checkpoint,
        watch=training.watch,
    )
    return factors


def _begin_with_mean(factors: LoraFactors, files: Sequence[bytes]) -> None:
    vectors = []
    for file in files:
        factors.load(from_safetensors(file), scaling=factors.scaling)
        vectors.append(factors.vector.detach().clone())
    factors.vector.data.copy_(torch.stack(vectors).mean(dim=0))


def round_to_file(factors: LoraFactors) -> dict[str, torch.Tensor]:
    """Rounds factors to bf16, as the file holds them; returns them by PEFT's names."""
    weights = {name: factor.to(torch.bfloat16) for name, factor in factors.state().items()}
    factors.load(weights, scaling=factors.scaling)
    return weights


def digest_of(examples: Sequence[RoleExample]) -> str:
    """sha256 of the tokenised examples, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.example.tokens, example.example.reply_start, example.label)).encode())
    return digest.hexdigest()
