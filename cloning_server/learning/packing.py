"""Examples concatenated for two passes: first over their prompts, then over their replies, which are learned.

All prompts of a student begin with the same instructions, a third of all tokens. Within one step these tokens have the
same activations in every example, so they are computed once, and each example attends to them.

Knows nothing of models.
"""

import math
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
        shared_tokens: Number of prompt tokens that all examples begin with.
        prompt_lengths: For each example, its prompt tokens beyond the shared ones. The prompt's last token is not among
            them: it predicts the reply's first token, and is computed with the reply.
        reply_lengths: For each example, the tokens of its reply, end token included.
        prompts_N: Token ids: the shared tokens, then each example's other prompt tokens.
        prompt_positions_N: Position of each prompt token in its example, from 0.
        replies_M: Token ids: for each example the prompt's last token, then its reply without the end token.
        reply_positions_M: Position of each of these in its example.
        targets_M: What these predict: the reply tokens, end tokens included.
        deciding: Indices of the targets that decide what a reply does: its first token, and the first one behind its
            first sentence.
    """

    shared_tokens: int
    prompt_lengths: Sequence[int]
    reply_lengths: Sequence[int]
    prompts_N: Tensor
    prompt_positions_N: Tensor
    replies_M: Tensor
    reply_positions_M: Tensor
    targets_M: Tensor
    deciding: Sequence[int]

    @property
    def size(self) -> int:
        """Tokens to compute."""
        return len(self.prompts_N) + len(self.replies_M)


def pack(examples: Sequence[Example], *, device: torch.device) -> Pack:
    """Concatenates examples."""
    prompts = [example.tokens[: example.reply_start - 1] for example in examples]
    columns = zip(*prompts, strict=False)
    shared_tokens = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    tokens, positions = list(prompts[0][:shared_tokens]), list(range(shared_tokens))
    replies: list[int] = []
    reply_positions: list[int] = []
    targets: list[int] = []
    deciding: list[int] = []
    for example, prompt in zip(examples, prompts, strict=True):
        tokens += prompt[shared_tokens:]
        positions += range(shared_tokens, len(prompt))
        replies += example.tokens[len(prompt) : -1]
        reply_positions += range(len(prompt), len(example.tokens) - 1)
        starts = (start for start in (example.reply_start, example.body_start) if start is not None)
        deciding += (len(targets) + start - example.reply_start for start in starts)
        targets += example.tokens[example.reply_start :]

    def tensor_of(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Pack(
        shared_tokens=shared_tokens,
        prompt_lengths=[len(prompt) - shared_tokens for prompt in prompts],
        reply_lengths=[len(example.tokens) - example.reply_start for example in examples],
        prompts_N=tensor_of(tokens),
        prompt_positions_N=tensor_of(positions),
        replies_M=tensor_of(replies),
        reply_positions_M=tensor_of(reply_positions),
        targets_M=tensor_of(targets),
        deciding=deciding,
    )


def packs_of(examples: Sequence[Example], size: int, *, device: torch.device) -> list[Pack]:
    """Packs of at most `size` examples, dealt by the length of their prompts, so that each has short and long ones.

    The situations of a student differ in length. A pack of one situation would teach what its replies have in common,
    and not what in a prompt calls for them.
    """
    ordered = sorted(examples, key=lambda example: (example.reply_start, example.tokens))
    count = math.ceil(len(ordered) / size)
    return [pack(ordered[place::count], device=device) for place in range(count)]
