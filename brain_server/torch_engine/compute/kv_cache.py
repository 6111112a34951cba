"""The keys and values of what was read, in rows that are allocated once.

A row belongs to one reply at a time and is wiped before it changes hands: nothing of a student's conversation is left
for the next, and no number that is not finite. For the torch thread.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KvCache:
    """Keys and values of every layer.

    Attributes:
        tensor: [layers, 2 (keys, values), rows, kv heads, context tokens, head width].
        layers: The same as keys and values, [rows, kv heads, context tokens, head width] each.
    """

    def __init__(
        self, *, layers: int, rows: int, heads: int, context_tokens: int, width: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        # Zeros: attention weighs what is masked by 0, and 0 times garbage may be NaN.
        self.tensor: Tensor = torch.zeros(layers, 2, rows, heads, context_tokens, width, dtype=dtype, device=device)
        # Views, made once: a step asks for those of every layer.
        self.layers: Sequence[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.tensor]
        self._by_place = [tuple(one.transpose(1, 2) for one in layer) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, whatever is in it."""
        return self.tensor.nbytes

    def write(self, layer: int, places: tuple[Tensor, Tensor], *, keys_NXD: Tensor, values_NXD: Tensor) -> None:
        """Keeps the keys and values of tokens, given the row and the position of each."""
        for table_RTXD, numbers_NXD in zip(self._by_place[layer], (keys_NXD, values_NXD), strict=True):
            table_RTXD.index_put_(places, numbers_NXD)

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
