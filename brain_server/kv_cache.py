"""The keys and values of what was read, in rows that are allocated once.

A row belongs to one reply at a time and is wiped before it changes hands: nothing of a student's conversation is left
for the next, and no number that is not finite. For the torch thread.
"""

import torch
from torch import Tensor


class KvCache:
    """Keys and values of every layer.

    Attributes:
        tensor: [layers, 2 (keys, values), rows, kv heads, context tokens, head width].
    """

    def __init__(
        self, *, layers: int, rows: int, heads: int, context_tokens: int, width: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        # Zeros: attention weighs what is masked by 0, and 0 times garbage may be NaN.
        self.tensor: Tensor = torch.zeros(layers, 2, rows, heads, context_tokens, width, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, whatever is in it."""
        return self.tensor.nbytes

    def wipe(self, row: int, tokens: int) -> None:
        """Clears a row that held so many tokens."""
        self.tensor[:, :, row, :, :tokens] = 0

    def move(self, source: int, target: int, tokens: int) -> None:
        """Moves a row's tokens to a row that is clear, and clears the source."""
        self.tensor[:, :, target, :, :tokens] = self.tensor[:, :, source, :, :tokens]
        self.wipe(source, tokens)

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchanges two rows of at most so many tokens."""
        kept = self.tensor[:, :, one, :, :tokens].clone()
        self.tensor[:, :, one, :, :tokens] = self.tensor[:, :, other, :, :tokens]
        self.tensor[:, :, other, :, :tokens] = kept
