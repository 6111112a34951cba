"""Keys and values of the tokens read so far, in rows that are allocated once.

A row belongs to one sequence at a time and is wiped before another gets it, so that nothing of a student's conversation
remains for the next student, and no NaN or infinity. For the torch thread.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KvCache:
    """Keys and values of every layer.

    Attributes:
        tensor: [layers, 2 (keys, values), rows, kv heads, context tokens, head width].
        layers: Views of `tensor`, keys and values per layer: [rows, kv heads, context tokens, head width] each.
    """

    def __init__(
        self, *, layers: int, rows: int, heads: int, context_tokens: int, width: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        # Zeros: attention multiplies masked values by 0, and 0 times garbage may be NaN.
        self.tensor: Tensor = torch.zeros(layers, 2, rows, heads, context_tokens, width, dtype=dtype, device=device)
        # Views are made once, because every step needs those of every layer.
        self.layers: Sequence[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.tensor]
        self._by_position = [tuple(table.transpose(1, 2) for table in layer) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, whether in use or not."""
        return self.tensor.nbytes

    def write(self, layer: int, places: tuple[Tensor, Tensor], *, keys_NXD: Tensor, values_NXD: Tensor) -> None:
        """Stores the keys and values of tokens in one layer.

        Args:
            layer: Index of the layer.
            places: Row and position of each token, [N] each.
            keys_NXD: Keys, [N, kv heads, head width].
            values_NXD: Values, of the same shape.
        """
        for table_RTXD, numbers_NXD in zip(self._by_position[layer], (keys_NXD, values_NXD), strict=True):
            table_RTXD.index_put_(places, numbers_NXD)

    def wipe(self, row: int, token_count: int) -> None:
        """Clears the first positions of a row."""
        self.tensor[:, :, row, :, :token_count] = 0

    def move(self, source: int, target: int, token_count: int) -> None:
        """Moves the first positions of a row to a clear row, and clears the source."""
        self.tensor[:, :, target, :, :token_count] = self.tensor[:, :, source, :, :token_count]
        self.wipe(source, token_count)

    def swap(self, first_row: int, second_row: int, token_count: int) -> None:
        """Exchanges the first positions of two rows."""
        first_content = self.tensor[:, :, first_row, :, :token_count].clone()
        self.tensor[:, :, first_row, :, :token_count] = self.tensor[:, :, second_row, :, :token_count]
        self.tensor[:, :, second_row, :, :token_count] = first_content
