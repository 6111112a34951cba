"""The training of one role: batches, gradients of the whole conversation, checkpoints.

A role learns with the cloning server's own passes, but with gradients through the prompt too: a label is one token, and
gradients that end at the prompt (ADR 14) would leave it with next to nothing to learn from.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from torch import Tensor

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.optimizer import AdapterOptimizer
from cloning_server.learning.packing import pack
from cloning_server.learning.passes import Passes
from mesh.lm.chat import Example
from mesh.lm.lora import LoraSpec
from mesh.log import get_logger

_log = get_logger(__name__)

ALL_MODULES = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
# Tokens of one pass, on a CPU and on a GPU. The memory for the backward pass grows with them: about a megabyte per
# token at 135M. A GPU takes about as long for a small pass as for a large one.
_CPU_PASS_TOKENS, _GPU_PASS_TOKENS = 2048, 16384
# Steps between two checkpoints: a minute or less on two cores.
_CHECKPOINT_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleExample:
    """A conversation to learn from.

    Attributes:
        example: Its tokens.
        label: Index of the label that the reply's first token stands for; None if the whole reply is learned.
    """

    example: Example
    label: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSettings:
    """How a role is trained.

    Attributes:
        rank: Rank of the adapter.
        alpha: The update is scaled by alpha / rank.
        epochs: How often each example is seen.
        learning_rate: Peak of the schedule.
        batch: Examples per step.
        seed: Seed of the first factors and the order of the examples.
    """

    rank: int = 16
    alpha: int = 32
    epochs: int = 3
    learning_rate: float = 5e-4
    batch: int = 32
    seed: int = 0

    @property
    def lora(self) -> LoraSpec:
        """The shape of the adapter: all linear modules of every layer."""
        return LoraSpec(rank=self.rank, alpha=self.alpha, target_modules=ALL_MODULES)


class Objective(Protocol):
    """What is learned from some examples."""

    def scored(self, examples: Sequence[RoleExample]) -> list[range]:
        """Returns for each example the positions of the tokens whose hidden states the loss takes."""
        ...

    def loss(self, examples: Sequence[RoleExample], x_SH: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Returns the nats of each scored position, and the gradient of their sum times `share`."""
        ...

    def size(self, examples: Sequence[RoleExample]) -> int:
        """Returns how many nats some examples have."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """A step that was applied; `loss` is the mean nats of its batch."""

    step: int
    steps: int
    loss: float


def train(
    passes: Passes,
    factors: LoraFactors,
    examples: Sequence[RoleExample],
    objective: Objective,
    settings: RoleSettings,
    *,
    origin: str,
    checkpoint: Path | None = None,
    watch: Callable[[StepReport], None] = lambda _report: None,
) -> None:
    """Trains an adapter; goes on from a checkpoint of the same training, if there is one.

    The same seed gives the same bytes on the same machine, whether the training was interrupted or not. `origin` says
    which weights it is trained on and with which factors it began. A checkpoint of another training, or one that can't
    be read, is not used and is replaced.

    Raises:
        TrainingDiverged: A loss or a gradient is not finite.
    """
    steps_per_epoch = -(-len(examples) // settings.batch)
    steps = settings.epochs * steps_per_epoch
    optimizer = AdapterOptimizer(factors, steps=steps, learning_rate=settings.learning_rate)
    identity = _identity(examples, settings, origin=origin)
    if checkpoint is not None:
        _resume(checkpoint, factors, optimizer, identity=identity)
    for step, batch in enumerate(_batches(examples, settings)):
        if step < optimizer.steps_done:
            continue
        loss = _add_gradients(passes, factors, batch, objective)
        optimizer.step(loss)
        watch(StepReport(step=step + 1, steps=steps, loss=loss))
        if checkpoint is not None and ((step + 1) % _CHECKPOINT_STEPS == 0 or step + 1 == steps):
            _save(checkpoint, factors, optimizer, identity=identity)


def _batches(examples: Sequence[RoleExample], settings: RoleSettings) -> Iterator[list[RoleExample]]:
    # Repeatable on purpose; it need not be hard to guess.
    draws = random.Random(settings.seed)  # noqa: S311
    for _ in range(settings.epochs):
        order = draws.sample(list(examples), len(examples))
        for start in range(0, len(order), settings.batch):
            yield order[start : start + settings.batch]


def _add_gradients(passes: Passes, factors: LoraFactors, batch: Sequence[RoleExample], objective: Objective) -> float:
    """Adds the gradient of the batch's mean loss; returns that loss."""
    share, total = 1 / objective.size(batch), 0.0
    for members in grouped(batch, passes.device):
        nats = _add_pass(passes, factors, members, objective, share)
        total += float(nats.sum())
    return total * share


def _add_pass(
    passes: Passes, factors: LoraFactors, members: Sequence[RoleExample], objective: Objective, share: float
) -> Tensor:
    packed = pack([_whole(member.example) for member in members], device=passes.device)
    # The first token of each conversation is context; the packed replies begin with it.
    starts, start = [], 0
    for member in members:
        starts.append(start)
        start += len(member.example.tokens) - 1
    places = [
        start + place for start, positions in zip(starts, objective.scored(members), strict=True) for place in positions
    ]
    scored_M = torch.tensor(places, device=passes.device)

    def loss(x_SH: Tensor) -> tuple[Tensor, Tensor]:
        return objective.loss(members, x_SH, share)

    return passes.add_gradients_of(loss, [packed], [factors], scored_M=scored_M)


def grouped(batch: Sequence[RoleExample], device: torch.device) -> Iterator[list[RoleExample]]:
    """Yields the examples of a batch in groups of similar length, each small enough for one pass on a device."""
    limit = _CPU_PASS_TOKENS if device.type == "cpu" else _GPU_PASS_TOKENS
    group: list[RoleExample] = []
    for member in sorted(batch, key=lambda member: (len(member.example.tokens), member.example.tokens)):
        if group and (len(group) + 1) * len(member.example.tokens) > limit:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _whole(example: Example) -> Example:
    """The example with everything after its first token as the reply, so that gradients reach all of it."""
    return replace(example, reply_start=1)


def _identity(examples: Sequence[RoleExample], settings: RoleSettings, *, origin: str) -> str:
    digest = hashlib.sha256(json.dumps([asdict(settings), origin], sort_keys=True).encode())
    for member in examples:
        digest.update(repr((member.example.tokens, member.example.reply_start, member.label)).encode())
    return digest.hexdigest()


def _save(path: Path, factors: LoraFactors, optimizer: AdapterOptimizer, *, identity: str) -> None:
    part = path.with_suffix(".part")
    state = {"identity": identity, "vector": factors.vector.detach().cpu(), "optimizer": optimizer.state()}
    torch.save(state, part)
    # A reader sees the checkpoint before or this one, never a part.
    part.replace(path)


def _resume(path: Path, factors: LoraFactors, optimizer: AdapterOptimizer, *, identity: str) -> None:
    if not path.is_file():
        return
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        is_of_this_training = state["identity"] == identity
    except (OSError, EOFError, RuntimeError, UnpicklingError, KeyError, TypeError) as error:
        _log.warning("checkpoint_unreadable", path=str(path), reason=type(error).__name__)
        return
    if not is_of_this_training:
        _log.warning("checkpoint_of_another_training", path=str(path))
        return
    factors.vector.data.copy_(state["vector"])
    optimizer.load_state(state["optimizer"])
