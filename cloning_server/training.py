"""The contract of a trainer: it gets a plan, and returns progress and then the adapter.

Knows neither torch nor Ray.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from cloning_server.clone import Baseline, CloneState
from mesh.adapters.manifest import Recipe, Start
from mesh.tutoring.policy import TeachingPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousVersion:
    """An earlier version to continue from, to be better than, or both.

    Attributes:
        weights: Its safetensors file.
        scaling: Multiplies the product of its factors when it serves.
        warm: Whether training continues from it (warm start) rather than from a new adapter.
        to_beat: Whether the new version would replace it and must be better; False for a cohort's adapter.
        identity: The version's identity, for the recipe of a version that continues from it; None if not known.
        base_digest: Digest of the Main Brain that it belongs to, lower-case hex; empty if not known.
        policy: Its teaching policy; None if it has none.
    """

    weights: bytes
    scaling: float
    warm: bool = False
    to_beat: bool = True
    identity: Start | None = None
    base_digest: str = ""
    policy: TeachingPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """One adapter to train.

    Trained alone, the same plan gives the same bytes on the same machine and base model, if the distilled replies are
    the same. Trained in a class, it gives the same up to rounding.

    Attributes:
        clone_id: The clone that trains it, for the recipe.
        baseline: The responses to learn from, and the student's profile.
        seed: Of the split, the data order, the initial factors and the sampling of replies.
        epochs: Passes over the training examples.
        least_steps: A small baseline gets more passes, until it has so many optimiser steps.
        rank: Rank of the LoRA factors.
        alpha: Numerator of LoRA's scaling, `alpha / rank`.
        target_modules: Projections that get factors, sorted.
        learning_rate: Peak of the schedule.
        batch_examples: Examples per optimiser step.
        heldout_share: Share of the items that are held out to measure with, 0 to 1; at least one item is.
        previous: An earlier version to continue from or to be better than; None to be better than the base model alone.
    """

    clone_id: str
    baseline: Baseline
    seed: int = 0
    epochs: int = 2
    least_steps: int = 0
    rank: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    # LoRA starts with no effect and tolerates far larger steps than full fine-tuning. Four students with 100 responses
    # came to a mean held-out loss of 0.70 at 2e-3 and 0.66 at 3e-3, but then 4 of 64 replies went in circles instead of
    # 2; at 5e-3 more did.
    learning_rate: float = 2.5e-3
    # A baseline is small: 24 responses gave a held-out loss of 2.65 in batches of 8, 2.45 in batches of 4 (base model
    # 3.16).
    batch_examples: int = 4
    heldout_share: float = 0.15
    previous: PreviousVersion | None = None

    @property
    def start(self) -> Start | None:
        """The version that training continues from, for the recipe; None for a new adapter."""
        return self.previous.identity if self.previous and self.previous.warm else None

    @property
    def earlier_policy(self) -> TeachingPolicy | None:
        """The teaching policy of the student's own version that training continues from; None if there is none."""
        previous = self.previous
        # A cohort's policy is drawn from other students' answers.
        return previous.policy if previous and previous.warm and previous.to_beat else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a training.

    States come in the order of `CloneState`, from LOADING_BASE_MODEL to OPTIMIZING; the last message of each is at the
    fraction 1.

    Attributes:
        state: The current state.
        fraction: The completed share of that state, 0 to 1; never decreases within a state.
        message: The completed work, for people; holds counts and losses, never a student's words.
    """

    state: CloneState
    fraction: float
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """The result of a training, which it yields last.

    Attributes:
        weights: The adapter's safetensors file.
        recipe: How it was trained, for the manifest.
    """

    weights: bytes
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFacts:
    """The state of a trainer, for health.

    Attributes:
        ready: Whether a training can start at once, because the base model is loaded.
        reason: Why not; empty if it can.
        model: Name of the base model that is loaded, or of the configured one while none is.
        device: `cuda` or `cpu`; empty if not known.
        gpu_available: Whether the trainer has a usable GPU.
        fallback_for: The configured base model, if the catalogue's fallback is loaded in its place.
        main_brain: Digest of the Main Brain that it trains on, lower-case hex; empty if not known.
        problems: Why a role of the Main Brain that is there is not used, one sentence each.
    """

    ready: bool
    reason: str
    model: str
    device: str
    gpu_available: bool
    fallback_for: str = ""
    main_brain: str = ""
    problems: tuple[str, ...] = ()


class Trainer(Protocol):
    """Trains adapters on a base model that stays loaded."""

    @property
    def facts(self) -> TrainerFacts:
        """The trainer's state."""
        ...

    @property
    def seats(self) -> int:
        """How many trainings can run together now; 0 while none can start at once."""
        ...

    def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Trains; yields progress, then the adapter. Closing the generator stops the training after its current step.

        Any number of trainings may run on one trainer: their steps are computed together, and the end of one does not
        disturb the others.

        Raises:
            NoTrainableExamples: The baseline gives fewer than two examples.
            TrainingDiverged: A loss or the weights are not finite.
            GateNotPassed: The adapter is not better than what it would replace.
            AdapterCorrupt, AdapterIncompatible: The previous version can't be read, or does not have the plan's shape.
            TrainerUnavailable: The trainer died, or can't start a training now; it recovers by itself.
        """
        ...
