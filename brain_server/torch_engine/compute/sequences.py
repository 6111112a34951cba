"""What a row of the batch works on: a reply to write, or labels to weigh.

A task says which tokens to read next and is given the logits that it wants. For the torch thread. Knows nothing of
rows, slots or other tasks.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from brain_server.engine.contract import FinishReason
from brain_server.torch_engine.compute.grammar import Constraint
from brain_server.torch_engine.compute.sampler import Sampler, TextStream
from brain_server.torch_engine.compute.stop_texts import Stopping


class Task(ABC):
    """One piece of work.

    Attributes:
        pending: Tokens to read next; empty once there is nothing left to do.
        held: Tokens that were read and are in the cache.
        touched: Tokens that were ever written to the cache.
        started_at: When its first tokens were read, in `time.monotonic()` seconds; None before.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self.pending: Sequence[int] = prompt
        self.held = 0
        self.touched = 0
        self.started_at: float | None = None

    @property
    @abstractmethod
    def writing(self) -> bool:
        """Whether it reads token by token from now on."""

    @property
    def wanted(self) -> range:
        """Which of the pending tokens' logits it wants."""
        return range(len(self.pending) - 1, len(self.pending))

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.pending

    def read(self, count: int) -> None:
        """Notes that so many of the pending tokens have been read."""
        self.pending = self.pending[count:]
        self.held += count
        self.touched = max(self.touched, self.held)


class ReplyTask(Task):
    """A reply to write.

    Attributes:
        sampler: Picks its tokens.
        pieces: What may be sent and was not yet taken.
        tokens: How many it has.
        finish_reason: Why it ended; None before.
        first_token_at: When its first token was picked, in `time.monotonic()` seconds; None before.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        sampler: Sampler,
        max_tokens: int,
        stop_tokens: frozenset[int],
        text: TextStream,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> None:
        """Takes what to write.

        Args:
            prompt: Token ids, at least one.
            sampler: Picks the tokens.
            max_tokens: Most tokens of the reply, at least 1; with the prompt they fit the row.
            stop_tokens: End the reply; they are not part of it.
            text: Turns its tokens into text.
            stop: Texts that end the reply; they are not part of it.
            constraint: What the reply must satisfy, if anything.
        """
        super().__init__(prompt)
        self.sampler = sampler
        self.pieces: list[str] = []
        self.tokens = 0
        self.finish_reason: FinishReason | None = None
        self.first_token_at: float | None = None
        self._room = max_tokens
        self._stop_tokens = stop_tokens
        self._text = text
        self._stops = Stopping(stop)
        self._constraint = constraint

    @property
    def writing(self) -> bool:
        """See `Task.writing`."""
        return self.first_token_at is not None

    def mask(self, logits_V: Tensor) -> None:
        """Excludes the tokens that can't follow, in place."""
        if self._constraint is not None:
            self._constraint.mask(logits_V)

    def take(self, token: int) -> None:
        """Takes the next token."""
        self.first_token_at = self.first_token_at or time.monotonic()
        if token in self._stop_tokens:
            self._finish(FinishReason.STOP)
            return
        ending = self._constraint.accept(token, room=self._room) if self._constraint is not None else None
        for one in (token,) if ending is None else ending:
            self._write(one)
        if ending is not None or self._stops.stopped or (self._constraint is not None and self._constraint.complete):
            self._finish(FinishReason.STOP)
        elif self._room == 0:
            self._finish(FinishReason.LENGTH)
        else:
            self.pending = (token,)

    def _write(self, token: int) -> None:
        self.tokens += 1
        self._room -= 1
        if piece := self._stops.push(self._text.push(token)):
            self.pieces.append(piece)

    def _finish(self, reason: FinishReason) -> None:
        if rest := self._stops.rest():
            self.pieces.append(rest)
        self.finish_reason = FinishReason.STOP if self._stops.stopped else reason
        self.pending = ()


class WeighTask(Task):
    """Labels to weigh: how likely the model is to go on with each rather than with another.

    A label's weight is the product of its tokens' probabilities. The prompt is read once and each label behind it, one
    after the other in the same place.
    """

    def __init__(self, prompt: Sequence[int], labels: Sequence[Sequence[int]]) -> None:
        """Takes token ids, at least one each; no label should begin with another, as both would be counted."""
        super().__init__(prompt)
        self._prompt_tokens = len(prompt)
        self._labels = labels
        self._scores: list[float] = []
        self._behind = [index for index, label in enumerate(labels) if len(label) > 1]
        self._current: int | None = None

    @property
    def writing(self) -> bool:
        """See `Task.writing`."""
        return False

    @property
    def wanted(self) -> range:
        """See `Task.wanted`."""
        return super().wanted if self._current is None else range(len(self.pending))

    @property
    def weights(self) -> list[float]:
        """Of the labels, in their order; add up to 1. Not before it is done."""
        return [float(weight) for weight in torch.tensor(self._scores, dtype=torch.float64).softmax(dim=-1)]

    def take(self, logits_TV: Tensor) -> bool:
        """Takes the logits that it wanted; tells whether they are finite."""
        log_TV = logits_TV.log_softmax(dim=-1)
        if self._current is None:
            self._scores = [float(log_TV[0, label[0]]) for label in self._labels]
        else:
            following = self._labels[self._current][1:]
            self._scores[self._current] += sum(
                float(log_V[token]) for log_V, token in zip(log_TV, following, strict=True)
            )
        self._current = self._behind.pop(0) if self._behind else None
        self.held = self._prompt_tokens
        self.pending = () if self._current is None else self._labels[self._current][:-1]
        return bool(torch.isfinite(logits_TV.max()))
