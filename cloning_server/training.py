"""What a clone asks of a trainer: a plan goes in, progress comes out, and last the adapter.

Says nothing of how; knows neither torch nor Ray.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from cloning_server.clone import Baseline, CloneState
from mesh.adapters.manifest import Recipe, Start


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousVersion:
    """A version that was there before: to beat, to go on from, or both.

    Attributes:
        weights: Its safetensors file.
        scaling: What the product of its factors is multiplied with when serving.
        warm: Whether training continues from it rather than starts fresh.
        to_beat: Whether the new version would answer in its place, and so has to be better; not so of a cohort's.
        identity: Which version it is, for the recipe of one that continues from it; None if that is not known.
        base_digest: sha256 of the base model that it fits, lower-case hex; empty if that is not known.
    """

    weights: bytes
    scaling: float
    warm: bool = False
    to_beat: bool = True
    identity: Start | None = None
    base_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """One adapter to train.

    The same plan, trained alone, gives the same bytes on the same machine and base model, as long as the replies
    distilled for it are the same. Trained in a class it gives the same but for rounding.

    Attributes:
        clone_id: The clone that asks; it goes into the recipe.
        baseline: What is learned, and for whom.
        seed: Of the split, the data order, the initial factors and the sampling of replies.
        epochs: Passes over the training examples.
        rank: Rank of the LoRA factors.
        alpha: Numerator of LoRA's scaling, `alpha / rank`.
        target_modules: Projections that get factors, sorted.
        learning_rate: Peak of the schedule.
        batch_examples: Examples of one optimiser step.
        heldout_share: Share of the items kept apart to measure, 0 to 1; at least one item is.
        previous: What training goes on from or has to beat; None if the base model is all there is to beat.
    """

    clone_id: str
    baseline: Baseline
    seed: int = 0
    epochs: int = 3
    rank: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    # LoRA starts with no effect at all and bears steps far larger than full fine-tuning does.
    learning_rate: float = 1e-3
    # A baseline is small: 24 responses gave a held-out loss of 2.65 in batches of 8, 2.45 of 4 (base model 3.16).
    batch_examples: int = 4
    heldout_share: float = 0.15
    previous: PreviousVersion | None = None

    @property
    def start(self) -> Start | None:
        """The version that training goes on from, as the recipe tells it; None for a fresh adapter."""
        return self.previous.identity if self.previous and self.previous.warm else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step that was done.

    States come in the order of `CloneState`, from LOADING_BASE_MODEL to OPTIMIZING, each with a first message at the
    fraction 0 and a last one at 1.

    Attributes:
        state: Where the training is.
        fraction: How much of that state is done, 0 to 1; never goes back within a state.
        message: What was done, in words for people; holds counts and losses, never a student's words.
    """

    state: CloneState
    fraction: float
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """The last thing a training yields.

    Attributes:
        weights: The adapter's safetensors file.
        recipe: How it came to be, as the manifest tells it.
    """

    weights: bytes
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFacts:
    """What health says of a trainer.

    Attributes:
        ready: Whether a training can start at once: the base model is loaded.
        reason: Why not; empty if all is well.
        model: Name of the base model that trains, or that was asked for while none is loaded.
        device: `cuda` or `cpu`.
        gpu_available: Whether the trainer has a usable GPU.
        fallback_for: The base model that was asked for, if the catalogue's fallback trains in its place.
    """

    ready: bool
    reason: str
    model: str
    device: str
    gpu_available: bool
    fallback_for: str = ""


class Trainer(Protocol):
    """Trains adapters on a base model that stays loaded."""

    @property
    def facts(self) -> TrainerFacts:
        """What health says."""
        ...

    @property
    def seats(self) -> int:
        """How many trainings can be taken together now; 0 while none can start at once."""
        ...

    def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        """Trains: zero or more steps of progress, then the adapter. Closing the generator stops the work at a step.

        Any number may run on one trainer: their steps are taken together, and none is disturbed by another's end.

        Raises:
            NoTrainableExamples: If the baseline gives fewer than two examples.
            TrainingDiverged: If a loss or the weights are not finite.
            GateNotPassed: If the adapter is not better than what it would replace.
            AdapterCorrupt, AdapterIncompatible: If the previous version can't be read, or is not of the plan's shape.
            TrainerUnavailable: If the trainer died, or can't start a training now; it is made anew by itself.
        """
        ...
