"""The keys and values of conversations that are continued, and the attention to them.

What rows begin with alike is kept once for all of them; what each has of its own is in columns of its row. Attention to
the one is a product of all rows at once, so that it is read once a step (Juravsky et al., "Hydragen", 2024).

Knows nothing of models, adapters or what tokens mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mesh.lm.llama_shape import Shape


@dataclass(slots=True)
class Beginning:
    """What some rows begin with, as it is read and kept: keys and values a layer, [kv heads, tokens, D] each."""

    tokens: int
    rows: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class BeginningAttention:
    """Reads beginnings, one after another: each sees itself alone, and is kept."""

    def __init__(self, beginnings: Sequence[Beginning]) -> None:
        self._beginnings = beginnings

    def __call__(
        self, _layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, None]:
        """See `Attention`; called once a layer, in their order."""
        sizes = [one.tokens for one in self._beginnings]
        parts = (one.split(sizes) for one in (queries_NXD, keys_NXD, values_NXD))
        attended = []
        for beginning, queries_SXD, keys_SKD, values_SKD in zip(self._beginnings, *parts, strict=True):
            keys_KSD, values_KSD = keys_SKD.transpose(0, 1).contiguous(), values_SKD.transpose(0, 1).contiguous()
            beginning.layers.append((keys_KSD, values_KSD))
            count, heads, depth = queries_SXD.shape
            shape = (len(keys_KSD), heads // len(keys_KSD), count, depth)
            attended_KGSD = F.scaled_dot_product_attention(
                queries_SXD.transpose(0, 1).reshape(shape),
                keys_KSD[:, None].expand(shape),
                values_KSD[:, None].expand(shape),
                is_causal=True,
            )
            attended.append(attended_KGSD.flatten(0, 1).transpose(0, 1).reshape(count, heads * depth))
        return torch.cat(attended), None


class RowCache:
    """What rows have of their own, and the attention of what they read next to all that they have read.

    Args:
        beginnings: Of the rows in their order, each of as many as it says.
        columns: Tokens that a row has room for beyond its beginning.
        shape: Of the model.
        like: Any tensor of the dtype and on the device that it computes in.
    """

    def __init__(self, beginnings: Sequence[Beginning], *, columns: int, shape: Shape, like: Tensor) -> None:
        self._beginnings = beginnings
        count = sum(one.rows for one in beginnings)
        # Zeros: what is masked is weighed by 0, and 0 times garbage may be NaN.
        self._own = like.new_zeros(shape.layers, 2, count, shape.kv_heads, columns, shape.head_width)
        self._groups = shape.heads // shape.kv_heads
        self.lengths = [0] * count

    def expect(self, lengths: Sequence[int]) -> None:
        """Prepares for the next pass, which reads so many tokens of each row, one row after another."""
        device = self._own.device
        rows = [row for row, length in enumerate(lengths) for _ in range(length)]
        within = [place for length in lengths for place in range(length)]
        self._width = max(lengths)
        self._rows_N, self._within_N = torch.tensor(rows, device=device), torch.tensor(within, device=device)
        starts_R = torch.tensor(self.lengths, device=device)
        self._columns_N = starts_R[self._rows_N] + self._within_N
        self.lengths = [had + length for had, length in zip(self.lengths, lengths, strict=True)]
        self._reach = max(self.lengths)
        last_RW = starts_R[:, None] + torch.arange(self._width, device=device)
        hidden_RWT = torch.arange(self._reach, device=device) > last_RW[..., None]
        bias_RWT = self._own.new_zeros(hidden_RWT.shape).masked_fill_(hidden_RWT, -math.inf)
        self._bias_R1QT = bias_RWT.repeat(1, self._groups, 1).unsqueeze(1)

    def keep(self, kept: Sequence[int]) -> None:
        """Lets go of all rows but these, which keep their order."""
        self._own = self._own[:, :, torch.tensor(kept, device=self._own.device)]
        place = 0
        for one in self._beginnings:
            start, place = place, place + one.rows
            one.rows = sum(start <= row < place for row in kept)
        self._beginnings = [one for one in self._beginnings if one.rows]
        self.lengths = [self.lengths[row] for row in kept]

    def __call__(self, layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /) -> tuple[Tensor, None]:
        """See `Attention`; of the tokens that were expected."""
        places = (self._rows_N, self._columns_N)
        for table_RKTD, numbers_NKD in zip(self._own[layer], (keys_NXD, values_NXD), strict=True):
            table_RKTD.transpose(1, 2).index_put_(places, numbers_NKD)
        keys_RKTD, values_RKTD = self._own[layer, :, :, :, : self._reach]
        queries_RKQD = self._by_row(queries_NXD * queries_NXD.shape[-1] ** -0.5)
        attended, start = [], 0
        for one in self._beginnings:
            rows = slice(start, start + one.rows)
            own = (keys_RKTD[rows], values_RKTD[rows], self._bias_R1QT[rows])
            attended.append(_attend(queries_RKQD[rows], one.layers[layer], own))
            start += one.rows
        return self._by_token(torch.cat(attended)), None

    def _by_row(self, queries_NXD: Tensor) -> Tensor:
        """[rows, kv heads, Q, D]: the query heads of a key head one after another, each with all of a row's tokens."""
        rows, (_, heads, depth) = len(self.lengths), queries_NXD.shape
        padded_RWXD = queries_NXD.new_zeros(rows, self._width, heads, depth)
        padded_RWXD[self._rows_N, self._within_N] = queries_NXD
        return padded_RWXD.view(rows, self._width, -1, self._groups, depth).permute(0, 2, 3, 1, 4).flatten(2, 3)

    def _by_token(self, attended_RKQD: Tensor) -> Tensor:
        """Back from rows to tokens, [N, heads * D]."""
        by_head = attended_RKQD.unflatten(2, (self._groups, self._width)).permute(0, 3, 1, 2, 4)
        by_token: Tensor = by_head[self._rows_N, self._within_N].flatten(1)
        return by_token


def _attend(queries_RKQD: Tensor, beginning: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Attention of some rows to what they begin with, [K, P, D], and to their own, with one softmax over both."""
    (keys_KPD, values_KPD), (keys_RKTD, values_RKTD, bias_R1QT) = beginning, own
    rows, _, width, _ = queries_RKQD.shape
    queries_KMD = queries_RKQD.transpose(0, 1).flatten(1, 2)
    to_beginning_RKQP = (queries_KMD @ keys_KPD.transpose(1, 2)).unflatten(1, (rows, width)).transpose(0, 1)
    to_own_RKQT = queries_RKQD @ keys_RKTD.transpose(-1, -2) + bias_R1QT
    weights = torch.cat([to_beginning_RKQP, to_own_RKQT], dim=-1).softmax(dim=-1)
    of_beginning_RKQP, of_own_RKQT = weights.split([keys_KPD.shape[1], keys_RKTD.shape[2]], dim=-1)
    taken_KMD = of_beginning_RKQP.transpose(0, 1).flatten(1, 2) @ values_KPD
    taken_RKQD: Tensor = taken_KMD.unflatten(1, (rows, width)).transpose(0, 1)
    attended: Tensor = taken_RKQD + of_own_RKQT @ values_RKTD
    return attended
