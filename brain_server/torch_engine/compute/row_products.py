"""Products of rows with matrices of their own, which are in one table and are picked by slot number.

Both classes compute the same. Given inputs [B, T, I] and a table [slots, T, I, O] they return [B, T, O]: input t of row
b times matrix t of the row's slot. Knows nothing of adapters.
"""

import torch
from torch import Tensor


class EmbeddingBagProducts:
    """Reads each row's matrices in place, without a copy per row. For CPUs.

    A product is an embedding bag: the sum of the matrix's rows, weighted by the numbers of the input.
    """

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B = slots_B
        self._bags: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, x_BTI: Tensor, table_STIO: Tensor) -> Tensor:
        """Returns [B, T, O]; see the module."""
        _, count, inputs, outputs = table_STIO.shape
        if (count, inputs) not in self._bags:
            self._bags[count, inputs] = self._indices(count, inputs)
        indices, offsets = self._bags[count, inputs]
        # Not the function of torch.nn.functional, which computes the offsets again in every call.
        bags: Tensor = torch.embedding_bag(
            table_STIO.view(-1, outputs), indices, offsets, mode=0, per_sample_weights=x_BTI.reshape(-1)
        )[0]
        return bags.view(-1, count, outputs)

    def _indices(self, count: int, inputs: int) -> tuple[Tensor, Tensor]:
        """Returns indices of rows in the table, all matrices stacked, and the offset of each bag among the indices."""
        rows, device = count * inputs, self._slots_B.device
        indices_BR = (self._slots_B * rows)[:, None] + torch.arange(rows, device=device)
        return indices_BR.flatten(), torch.arange(len(self._slots_B) * count, device=device) * inputs


class MatmulProducts:
    """Copies each row's matrices for one batched product. For GPUs, which copy fast."""

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B = slots_B

    def __call__(self, x_BTI: Tensor, table_STIO: Tensor) -> Tensor:
        """Returns [B, T, O]; see the module."""
        return torch.matmul(x_BTI.unsqueeze(2), table_STIO[self._slots_B]).squeeze(2)
