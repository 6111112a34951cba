"""Trains adapters as a clone does, stores them in a folder, and measures the loss of replies with and without them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from benchmarks.replies import FileReplyCache, replies_to
from cloning_server.clone import Baseline
from cloning_server.clones.intake import request_digest
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.examples import complete_examples, draft_examples, split_examples
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.examples.written_examples import with_written_examples
from cloning_server.learning.packing import pack
from cloning_server.learning.passes import Passes
from cloning_server.learning.trainer import fine_tune
from cloning_server.training import TrainingPlan
from mesh.lm.chat import Example, Prompt, encode_example
from mesh.lm.lora import LoraSpec, from_safetensors, to_safetensors
from mesh.main_brain.base import BaseModel

# Number of examples in one forward pass.
_ROWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A held-out answer and the tutor's reply to it."""

    prompt: Prompt
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The negative log likelihood of each held-out reply in nats, and its number of tokens."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats per token over all replies."""
        return sum(self.nats) / sum(self.tokens)


class AdapterTrainer:
    """Trains adapters, and stores each, so that none is trained twice.

    Args:
        base: The base model.
        folder: Stores replies and adapters.
        epochs: Most epochs per training.
        seed: Seed of each training.
        process: Which of several processes this is that work in the folder; empty for the only one.
    """

    def __init__(self, base: BaseModel, *, folder: Path, epochs: int, seed: int, process: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.passes = Passes(base.model)
        self.replies = FileReplyCache(folder / f"replies{process}.json")
        self._folder = folder
        self._process = process
        self._names: dict[str, str] = {}
        self._epochs = epochs
        self._seed = seed

    def adapter(self, baseline: Baseline) -> LoraFactors:
        """Returns the adapter that a clone would train on this baseline."""
        weights = self._folder / f"{self.name_of(baseline)}.safetensors"
        if not weights.exists():
            part_path = weights.with_suffix(f".part{self._process}")
            part_path.write_bytes(self._train(baseline))
            part_path.replace(weights)
        return LoraFactors.of(self.base.model, from_safetensors(weights.read_bytes()), scaling=LoraSpec().scaling)

    def name_of(self, baseline: Baseline) -> str:
        """Returns a name made of everything that the adapter depends on; the first time distils the replies."""
        digest = request_digest("", baseline)
        if digest not in self._names:
            self._names[digest] = self._make_name(baseline)
        return self._names[digest]

    def _make_name(self, baseline: Baseline) -> str:
        drafts = draft_examples(baseline, compute_policy(baseline))
        distilled = replies_to(drafts, self.base, self.passes, cache=self.replies, seed=0)
        replies = [draft.feedback or distilled.get(draft.brief, "") for draft in drafts]
        inputs = [
            request_digest("", baseline),
            replies,
            self._epochs,
            self._seed,
            self.base.digest,
            str(self.base.dtype),
        ]
        return sha256(json.dumps(inputs).encode()).hexdigest()[:16]

    def _train(self, baseline: Baseline) -> bytes:
        plan = TrainingPlan(clone_id="benchmark", baseline=baseline, epochs=self._epochs, seed=self._seed)
        policy, profile = compute_policy(baseline), baseline.profile
        drafts = draft_examples(baseline, policy)
        all_examples, counts = complete_examples(
            drafts, replies_to(drafts, self.base, self.passes, cache=self.replies, seed=0), self.base.tokenizer
        )
        examples = split_examples(all_examples, counts, heldout_share=plan.heldout_share, seed=plan.seed)
        examples = with_written_examples(examples, profile, policy, self.base.tokenizer)
        return to_safetensors(fine_tune(plan, self.base, self.passes, examples).state)


def losses(base: BaseModel, passes: Passes, targets: Sequence[Target], adapter: LoraFactors | None = None) -> Scores:
    """Returns the loss of each reply with an adapter, or with none."""
    examples = [encode_example(base.tokenizer, target.prompt, target.reply) for target in targets]
    nats: dict[int, float] = {}
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].tokens))
    with torch.inference_mode():
        for start in range(0, len(order), _ROWS):
            batch = order[start : start + _ROWS]
            rows = [examples[index] for index in batch]
            (nats_M,) = passes.nats([pack(rows, device=base.device)], [adapter])
            for index, row in zip(batch, nats_M.split([_reply_tokens(row) for row in rows]), strict=True):
                nats[index] = float(row.sum())
    return Scores(nats=tuple(nats[index] for index in range(len(examples))), tokens=tuple(map(_reply_tokens, examples)))


def _reply_tokens(example: Example) -> int:
    return len(example.tokens) - example.reply_start
