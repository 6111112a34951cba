"""Products of rows with matrices of their own, which stand in one table and are found by number.

Knows nothing of adapters.
"""

from typing import Protocol

import torch
from torch import Tensor


class Gathered(Protocol):
    """The products of each row with the matrices of its own slot."""

    def __call__(self, x_BTI: Tensor, table_STIO: Tensor) -> Tensor:
        """Returns [B, T, O]: row b's t-th input times the t-th matrix of the row's slot."""
        ...


class Bags:
    """Reads each row's matrices where they are, in place of copying them for the row.

    A product is a bag of its matrix's rows, weighed by the numbers of the input.
    """

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B = slots_B
        self._bags: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, x_BTI: Tensor, table_STIO: Tensor) -> Tensor:
        """See `Gathered`."""
        _, count, inputs, outputs = table_STIO.shape
        if (count, inputs) not in self._bags:
            self._bags[count, inputs] = self._places(count, inputs)
        places, begins = self._bags[count, inputs]
        # Not torch.nn.functional's, which makes the bags' beginnings anew in every call.
        bags: Tensor = torch.embedding_bag(
            table_STIO.view(-1, outputs), places, begins, mode=0, per_sample_weights=x_BTI.reshape(-1)
        )[0]
        return bags.view(-1, count, outputs)

    def _places(self, count: int, inputs: int) -> tuple[Tensor, Tensor]:
        """Which rows of the table, all slots' matrices one below the other, and where each bag of them begins."""
        rows, device = count * inputs, self._slots_B.device
        places_BR = (self._slots_B * rows)[:, None] + torch.arange(rows, device=device)
        return places_BR.flatten(), torch.arange(len(self._slots_B) * count, device=device) * inputs


class Products:
    """Copies each row's matrices for one batched product, for GPUs: they copy well."""

    def __init__(self, slots_B: Tensor) -> None:
        self._slots_B = slots_B

    def __call__(self, x_BTI: Tensor, table_STIO: Tensor) -> Tensor:
        """See `Gathered`."""
        return torch.matmul(x_BTI.unsqueeze(2), table_STIO[self._slots_B]).squeeze(2)
