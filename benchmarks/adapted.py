"""Adapters made as a clone makes them and kept in a folder, and the loss of replies with and without them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch

from benchmarks.replies import FileReplyCache, replies_to
from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.clones.registry import digest
from cloning_server.compute.lora_factors import Factors
from cloning_server.examples.examples import Draft, complete_examples, draft_examples, split_examples
from cloning_server.learning.packing import pack
from cloning_server.learning.passes import Forward
from cloning_server.learning.trainer import fine_tune
from cloning_server.training import TrainingPlan
from mesh.lm.base import BaseModel
from mesh.lm.chat import Example, Prompt, encode_example
from mesh.lm.lora import LoraSpec, from_safetensors, to_safetensors
from mesh.tutoring.profile import StudentProfile

# Examples of one pass.
_ROWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A held-out answer, and what a tutor should say to it."""

    prompt: Prompt
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of each held-out reply, how unlikely it was in nats, and its tokens."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats a token over all replies."""
        return sum(self.nats) / sum(self.tokens)


class Workshop:
    """Makes adapters, each once.

    Args:
        base: The base model.
        folder: Keeps replies and adapters.
        epochs: Of each training, at most.
        seed: Of each training.
    """

    def __init__(self, base: BaseModel, *, folder: Path, epochs: int, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.replies = FileReplyCache(folder / "replies.json")
        self._folder = folder
        self._epochs = epochs
        self._seed = seed

    def adapter(self, baseline: Baseline) -> Factors:
        """The adapter that a clone's fine-tuning makes of this."""
        weights = self._folder / f"{self._name(baseline)}.safetensors"
        if not weights.exists():
            beside = weights.with_suffix(".part")
            beside.write_bytes(self._make(baseline))
            beside.replace(weights)
        return Factors.of(self.base.model, from_safetensors(weights.read_bytes()), scaling=LoraSpec().scaling)

    def _name(self, baseline: Baseline) -> str:
        """Of all that an adapter depends on, what is taught above all."""
        taught = [one.reply for one in taught_of(draft_examples(baseline), self)]
        asked = [digest("", baseline), taught, self._epochs, self._seed, self.base.digest, str(self.base.dtype)]
        return sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def _make(self, baseline: Baseline) -> bytes:
        plan = TrainingPlan(clone_id="benchmark", baseline=baseline, epochs=self._epochs, seed=self._seed)
        drafts = draft_examples(baseline)
        made, counts = complete_examples(
            drafts, replies_to(drafts, self.base, cache=self.replies, seed=0), self.base.tokenizer
        )
        examples = split_examples(made, counts, heldout_share=plan.heldout_share, seed=plan.seed)
        return to_safetensors(fine_tune(plan, self.base, examples).state)


def targets_of(heldout: Baseline, *, record: Sequence[BaselineResponse], workshop: Workshop) -> list[Target]:
    """What a tutor should say to each held-out answer, made as a clone would; what fails is left out.

    How the student does in a skill is judged by the record, not by what is held out. No adapter has a part in it.
    """
    return taught_of(draft_examples(heldout, record=record), workshop)


def taught_of(drafts: Sequence[Draft], workshop: Workshop) -> list[Target]:
    """The prompts and replies that drafts come to."""
    replies = replies_to(drafts, workshop.base, cache=workshop.replies, seed=0)
    told = [(draft.prompt, draft.feedback or replies.get(draft.lesson, "")) for draft in drafts]
    return [Target(prompt=prompt, reply=reply) for prompt, reply in told if reply]


def bare(targets: Sequence[Target]) -> list[Target]:
    """The same without the student's profile in the prompt."""
    return [replace(one, prompt=replace(one.prompt, profile=StudentProfile())) for one in targets]


def losses(base: BaseModel, targets: Sequence[Target], adapter: Factors | None) -> Scores:
    """The loss of each reply with an adapter or without any."""
    examples = [encode_example(base.tokenizer, one.prompt, one.reply) for one in targets]
    forward, nats = Forward(base.model), dict[int, float]()
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].tokens))
    with torch.inference_mode():
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            rows = [examples[index] for index in some]
            (found_M,) = forward.nats([pack(rows, device=base.device)], [adapter])
            for index, row in zip(some, found_M.split([_reply_tokens(row) for row in rows]), strict=True):
                nats[index] = float(row.sum())
    return Scores(nats=tuple(nats[index] for index in range(len(examples))), tokens=tuple(map(_reply_tokens, examples)))


def _reply_tokens(example: Example) -> int:
    return len(example.tokens) - example.reply_start
