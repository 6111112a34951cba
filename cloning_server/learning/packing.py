"""Examples laid flat for two passes: first their prompts, then their replies, which are what is learned.

All of a student's prompts begin with the same instructions, a third of what is read. In one step these tokens have the
same activations in every example, so they are computed once; each example attends to them.

Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from mesh.lm.chat import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One student's examples of one step.

    Attributes:
        shared: Prompt tokens that all examples begin with.
        prompt_lengths: Of each example, its prompt tokens beyond what is shared. The prompt's last token is not among
            them: it predicts the reply's first, and is read with the reply.
        reply_lengths: Of each, its reply's tokens, end token included.
        prompts_N: Token ids: what is shared, then what each example has beyond that.
        prompt_positions_N: Of each in its example, from 0.
        replies_M: Token ids: of each example the prompt's last, then its reply but for the end.
        reply_positions_M: Of each in its example.
        targets_M: What those predict: the reply tokens, end tokens included.
    """

    shared: int
    prompt_lengths: Sequence[int]
    reply_lengths: Sequence[int]
    prompts_N: Tensor
    prompt_positions_N: Tensor
    replies_M: Tensor
    reply_positions_M: Tensor
    targets_M: Tensor

    @property
    def size(self) -> int:
        """Tokens to compute."""
        return len(self.prompts_N) + len(self.replies_M)


def pack(examples: Sequence[Example], *, device: torch.device) -> Pack:
    """Lays examples flat."""
    prompts = [example.tokens[: example.reply_start - 1] for example in examples]
    columns = zip(*prompts, strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    tokens, positions = list(prompts[0][:shared]), list(range(shared))
    replies: list[int] = []
    reply_positions: list[int] = []
    targets: list[int] = []
    for example, prompt in zip(examples, prompts, strict=True):
        tokens += prompt[shared:]
        positions += range(shared, len(prompt))
        replies += example.tokens[len(prompt) : -1]
        reply_positions += range(len(prompt), len(example.tokens) - 1)
        targets += example.tokens[example.reply_start :]

    def numbers(some: list[int]) -> Tensor:
        return torch.tensor(some, dtype=torch.long, device=device)

    return Pack(
        shared=shared,
        prompt_lengths=[len(prompt) - shared for prompt in prompts],
        reply_lengths=[len(example.tokens) - example.reply_start for example in examples],
        prompts_N=numbers(tokens),
        prompt_positions_N=numbers(positions),
        replies_M=numbers(replies),
        reply_positions_M=numbers(reply_positions),
        targets_M=numbers(targets),
    )


def packs_of(examples: Sequence[Example], size: int, *, device: torch.device) -> list[Pack]:
    """Packs of examples with prompts of like length; the last may be smaller."""
    ordered = sorted(examples, key=lambda example: (example.reply_start, example.tokens))
    return [pack(ordered[start : start + size], device=device) for start in range(0, len(ordered), size)]
