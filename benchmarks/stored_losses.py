"""Losses of adapters on held-out replies, stored, so that none is measured twice."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from benchmarks.adapter_trainer import Scores, Target, losses
from benchmarks.heldout_questions import ReplyArm
from benchmarks.replies import FileReplyCache
from cloning_server.learning.passes import Passes
from mesh.lm.chat import encode_example
from mesh.main_brain.base import BaseModel


class StoredLosses:
    """Measures losses, and keeps them in a file.

    Args:
        path: The file; the first loss creates it.
    """

    def __init__(self, path: Path) -> None:
        self._stored = FileReplyCache(path)

    def of(self, base: BaseModel, passes: Passes, targets: Sequence[Target], arm: ReplyArm) -> Scores:
        """Returns the loss of each target with an arm's adapter, or with the base model alone."""
        examples = [encode_example(base.tokenizer, target.prompt, target.reply) for target in targets]
        inputs = [base.digest, str(base.dtype), arm.adapter_name, [example.tokens for example in examples]]
        key = sha256(json.dumps(inputs).encode()).hexdigest()
        if stored := self._stored.get_many([key]):
            nats, tokens = json.loads(stored[key])
            return Scores(nats=tuple(nats), tokens=tuple(tokens))
        scores = losses(base, passes, targets, arm.factors)
        self._stored.put_many({key: json.dumps([scores.nats, scores.tokens])})
        return scores
