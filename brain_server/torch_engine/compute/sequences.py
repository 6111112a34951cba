"""The token sequences that rows of the batch work on: a reply to decode, or labels to score.

A sequence says which tokens to read next, and takes the logits that it needs of them. For the torch thread. Knows
nothing of rows, slots or other sequences.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from brain_server.engine.contract import FinishReason
from brain_server.torch_engine.compute.grammar import Constraint
from brain_server.torch_engine.compute.sampler import Sampler, TextStream
from brain_server.torch_engine.compute.stop_texts import StopFilter
from mesh.lm.repetition import RunHistory


class TokenSequence(ABC):
    """The tokens of one row.

    Attributes:
        next_tokens: Token ids to read next; empty once the sequence is finished.
        cached_tokens: Number of tokens that were read and are in the cache; also the position of the next token.
        dirty_tokens: Positions of the cache row, from its start, that were ever written to.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self.next_tokens: Sequence[int] = prompt
        self.cached_tokens = 0
        self.dirty_tokens = 0

    @property
    @abstractmethod
    def is_decoding(self) -> bool:
        """Whether it decodes from now on: it reads one token per step, and sometimes text that must follow it."""

    @property
    def logit_positions(self) -> range:
        """Which of `next_tokens` it needs logits of, as indices."""
        return range(len(self.next_tokens) - 1, len(self.next_tokens))

    @property
    def is_finished(self) -> bool:
        """Whether no token is left to read."""
        return not self.next_tokens

    def advance(self, count: int) -> None:
        """Records that the first `count` of `next_tokens` have been read."""
        self.next_tokens = self.next_tokens[count:]
        self.cached_tokens += count
        self.dirty_tokens = max(self.dirty_tokens, self.cached_tokens)


class ReplySequence(TokenSequence):
    """A prompt and the reply that is decoded after it.

    Attributes:
        sampler: Picks the reply's tokens.
        pieces: Text that may be sent; the batch removes what it has sent.
        token_count: Number of the reply's tokens so far.
        finish_reason: Why the reply ended; None before.
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
        runs: RunHistory | None = None,
    ) -> None:
        """Starts before the prompt.

        Args:
            prompt: Token ids, at least one.
            sampler: Picks the tokens.
            max_tokens: Upper bound of the reply's tokens, at least 1. Prompt and reply together must fit the row.
            stop_tokens: Tokens that end the reply; they are not part of it.
            text: Turns the reply's tokens into text.
            stop: Texts that end the reply; they are not part of it.
            constraint: What the reply must satisfy, if anything.
            runs: Keeps the reply from repeating itself; None lets it.
        """
        super().__init__(prompt)
        self.sampler = sampler
        self.pieces: list[str] = []
        self.token_count = 0
        self.finish_reason: FinishReason | None = None
        self.first_token_at: float | None = None
        self._room = max_tokens
        self._stop_tokens = stop_tokens
        self._text = text
        self._stop_filter = StopFilter(stop)
        self._constraint = constraint
        self._runs = runs
        # How every reply under the constraint begins: read with the prompt, and written once the prompt is read.
        self._opening = self._forced_tokens()
        self.next_tokens = (*prompt, *self._opening)

    @property
    def is_decoding(self) -> bool:
        """See `TokenSequence.is_decoding`."""
        return self.first_token_at is not None

    @torch.inference_mode()
    def mask(self, logits_V: Tensor) -> None:
        """Sets the logits of tokens that the constraint or the reply's own runs exclude to minus infinity, in place."""
        if self._constraint is not None:
            self._constraint.mask(logits_V)
        if self._runs is not None and (blocked_tokens := self._runs.blocked):
            logits_V[list(blocked_tokens)] = -torch.inf

    def accept(self, token: int) -> None:
        """Appends the picked token and the text that must follow it, or ends the reply."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
            if self._has_ended_with(self._opening):
                return
        if token in self._stop_tokens:
            self._finish(FinishReason.STOP)
            return
        completion = self._constraint.accept(token, room=self._room) if self._constraint is not None else None
        if self._has_ended_with((token,) if completion is None else completion, is_completion=completion is not None):
            return
        forced_tokens = self._forced_tokens()
        if not self._has_ended_with(forced_tokens):
            self.next_tokens = (token, *forced_tokens)

    def _forced_tokens(self) -> Sequence[int]:
        return self._constraint.accept_forced(room=self._room) if self._constraint is not None else ()

    def _has_ended_with(self, tokens: Sequence[int], *, is_completion: bool = False) -> bool:
        """Writes tokens, and ends the reply if they stop it, complete it or take its last room. Returns whether so."""
        for token in tokens:
            self._write(token)
            if self._stop_filter.has_stopped:
                break
        is_complete = is_completion or (self._constraint is not None and self._constraint.is_complete)
        if is_complete or self._stop_filter.has_stopped:
            self._finish(FinishReason.STOP)
        elif self._room == 0:
            self._finish(FinishReason.LENGTH)
        return self.finish_reason is not None

    def _write(self, token: int) -> None:
        self.token_count += 1
        self._room -= 1
        if self._runs is not None:
            self._runs.push(token)
        if piece := self._stop_filter.push(self._text.push(token)):
            self.pieces.append(piece)

    def _finish(self, reason: FinishReason) -> None:
        if piece := self._stop_filter.flush():
            self.pieces.append(piece)
        self.finish_reason = FinishReason.STOP if self._stop_filter.has_stopped else reason
        self.next_tokens = ()


class LabelSequence(TokenSequence):
    """A prompt and labels to score after it: how likely the model is to continue with each rather than with another.

    A label's probability is the product of its tokens' probabilities. The prompt is read once. Then the labels are read
    behind it, one after the other, each in the positions of the label before.
    """

    def __init__(self, prompt: Sequence[int], labels: Sequence[Sequence[int]]) -> None:
        """Starts before the prompt.

        Args:
            prompt: Token ids, at least one.
            labels: Token ids of each label, at least one per label. No label should begin with another, because the
                probability of the longer would count for both.
        """
        super().__init__(prompt)
        self._prompt_tokens = len(prompt)
        self._labels = labels
        self._scores: list[float] = []
        self._labels_to_read = [index for index, label in enumerate(labels) if len(label) > 1]
        self._current: int | None = None

    @property
    def is_decoding(self) -> bool:
        """See `TokenSequence.is_decoding`."""
        return False

    @property
    def logit_positions(self) -> range:
        """See `TokenSequence.logit_positions`."""
        return super().logit_positions if self._current is None else range(len(self.next_tokens))

    @property
    def weights(self) -> list[float]:
        """The labels' probabilities, in the order of the labels, with a sum of 1. Valid once it is finished."""
        return [float(weight) for weight in torch.tensor(self._scores, dtype=torch.float64).softmax(dim=-1)]

    def score(self, logits_TV: Tensor) -> bool:
        """Takes the logits of `logit_positions`. Returns whether they are finite."""
        log_probabilities_TV = logits_TV.log_softmax(dim=-1)
        if self._current is None:
            self._scores = [float(log_probabilities_TV[0, label[0]]) for label in self._labels]
        else:
            later_tokens = self._labels[self._current][1:]
            self._scores[self._current] += sum(
                float(log_probabilities_V[token])
                for log_probabilities_V, token in zip(log_probabilities_TV, later_tokens, strict=True)
            )
        self._current = self._labels_to_read.pop(0) if self._labels_to_read else None
        self.cached_tokens = self._prompt_tokens
        self.next_tokens = () if self._current is None else self._labels[self._current][:-1]
        return bool(torch.isfinite(logits_TV.max()))
