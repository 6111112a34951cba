"""Examples laid flat for one pass: what they all begin with once, then the rest of each in rows of one width.

All of a student's prompts begin with the same instructions, a third of what is read. In one step these tokens have the
same activations in every example, so they are computed once; each example attends to them, and their gradients add up.

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
    """One student's examples of one step. N tokens: `shared`, then `rows` times `width`; M tokens of replies.

    Attributes:
        shared: Tokens that all examples begin with.
        rows: Examples.
        width: Tokens of the longest of them beyond what is shared; shorter rows are filled up at their end, where
            nothing attends to.
        tokens_N: Token ids.
        positions_N: Of each in its example, from 0.
        predicting_M: Places in N of the tokens before each reply token, which predict it.
        targets_M: The reply tokens, end tokens included.
    """

    shared: int
    rows: int
    width: int
    tokens_N: Tensor
    positions_N: Tensor
    predicting_M: Tensor
    targets_M: Tensor

    @property
    def size(self) -> int:
        """Tokens to compute."""
        return self.shared + self.rows * self.width


def pack(examples: Sequence[Example], *, device: torch.device) -> Pack:
    """Lays examples flat; those of like length waste least."""
    # The last token of a prompt predicts the reply's first, so every row keeps its own.
    most = min(example.reply_start for example in examples) - 1
    columns = zip(*(example.tokens[:most] for example in examples), strict=True)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    width = max(len(example.tokens) for example in examples) - shared
    tokens, positions = list(examples[0].tokens[:shared]), list(range(shared))
    predicting: list[int] = []
    targets: list[int] = []
    for example in examples:
        # Where the example's first token would be if nothing were shared.
        start = len(tokens) - shared
        predicting += range(start + example.reply_start - 1, start + len(example.tokens) - 1)
        targets += example.tokens[example.reply_start :]
        tokens += [*example.tokens[shared:], *(0 for _ in range(width + shared - len(example.tokens)))]
        positions += range(shared, shared + width)
    return Pack(
        shared=shared,
        rows=len(examples),
        width=width,
        tokens_N=torch.tensor(tokens, device=device),
        positions_N=torch.tensor(positions, device=device),
        predicting_M=torch.tensor(predicting, device=device),
        targets_M=torch.tensor(targets, device=device),
    )


def packs_of(examples: Sequence[Example], size: int, *, device: torch.device) -> list[Pack]:
    """Packs of examples of like length; the last may be smaller."""
    ordered = sorted(examples, key=lambda example: (len(example.tokens), example.tokens))
    return [pack(ordered[start : start + size], device=device) for start in range(0, len(ordered), size)]
