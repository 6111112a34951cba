"""Keys and values of prompts under decoding, and the attention to them.

A prefix that several rows share is stored once; what each row has beyond it is stored in columns of its own. Attention
to a prefix is one product for all of its rows, so that it is read once per step (Juravsky et al., "Hydragen", 2024).

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
class SharedPrefix:
    """The tokens that some rows begin with.

    Attributes:
        tokens: How many tokens there are.
        rows: How many rows begin with them.
        layers: Keys and values by layer, [kv heads, tokens, D] each; filled by `PrefixAttention`.
    """

    tokens: int
    rows: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class PrefixAttention:
    """Computes prefixes, one after another; each attends to itself alone, and its keys and values are stored."""

    def __init__(self, prefixes: Sequence[SharedPrefix]) -> None:
        self._prefixes = prefixes

    def __call__(
        self, _layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, None]:
        """See `Attention`; called once per layer, in order."""
        sizes = [prefix.tokens for prefix in self._prefixes]
        parts = (tensor.split(sizes) for tensor in (queries_NXD, keys_NXD, values_NXD))
        outputs = []
        for prefix, queries_SXD, keys_SKD, values_SKD in zip(self._prefixes, *parts, strict=True):
            keys_KSD, values_KSD = keys_SKD.transpose(0, 1).contiguous(), values_SKD.transpose(0, 1).contiguous()
            prefix.layers.append((keys_KSD, values_KSD))
            count, heads, depth = queries_SXD.shape
            shape = (len(keys_KSD), heads // len(keys_KSD), count, depth)
            attended_KGSD = F.scaled_dot_product_attention(
                queries_SXD.transpose(0, 1).reshape(shape),
                keys_KSD[:, None].expand(shape),
                values_KSD[:, None].expand(shape),
                is_causal=True,
            )
            outputs.append(attended_KGSD.flatten(0, 1).transpose(0, 1).reshape(count, heads * depth))
        return torch.cat(outputs), None


class RowCache:
    """Keys and values of rows, behind the prefixes that they share.

    Args:
        prefixes: The prefixes of the rows, in the order of the rows.
        columns: How many tokens a row has room for beyond its prefix.
        shape: The model's.
        like: Any tensor of the dtype and on the device of the computation.

    Attributes:
        prefixes: The prefixes that still have rows.
        lengths: For each row, how many of its columns are in use.
        table: Keys and values, [layers, 2, rows, kv heads, columns, D].
        groups: Query heads per key head.
    """

    def __init__(self, prefixes: Sequence[SharedPrefix], *, columns: int, shape: Shape, like: Tensor) -> None:
        self.prefixes = prefixes
        count = sum(prefix.rows for prefix in prefixes)
        # Zeros: masked values are weighted by 0, and 0 times garbage may be NaN.
        self.table = like.new_zeros(shape.layers, 2, count, shape.kv_heads, columns, shape.head_width)
        self.groups = shape.heads // shape.kv_heads
        self.lengths = [0] * count

    def extend(self, lengths: Sequence[int]) -> "RowAttention":
        """Reserves columns for the next pass, which computes so many tokens of each row; returns its attention."""
        starts = self.lengths
        self.lengths = [start + length for start, length in zip(starts, lengths, strict=True)]
        return RowAttention(self, starts=starts, lengths=lengths)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, which keep their order."""
        self.table = self.table[:, :, torch.tensor(rows, device=self.table.device)]
        end = 0
        for prefix in self.prefixes:
            start, end = end, end + prefix.rows
            prefix.rows = sum(start <= row < end for row in rows)
        self.prefixes = [prefix for prefix in self.prefixes if prefix.rows]
        self.lengths = [self.lengths[row] for row in rows]


class RowAttention:
    """The attention of one pass: each row's new tokens attend to its prefix, its columns and themselves.

    Args:
        cache: Stores the keys and values of the new tokens.
        starts: For each row, the column of its first new token.
        lengths: For each row, how many new tokens it has.
    """

    def __init__(self, cache: RowCache, *, starts: Sequence[int], lengths: Sequence[int]) -> None:
        self._cache = cache
        device = cache.table.device
        rows = [row for row, length in enumerate(lengths) for _ in range(length)]
        places = [place for length in lengths for place in range(length)]
        self._width = max(lengths)
        self._rows_N, self._places_N = torch.tensor(rows, device=device), torch.tensor(places, device=device)
        starts_R = torch.tensor(starts, device=device)
        self._columns_N = starts_R[self._rows_N] + self._places_N
        self._reach = max(cache.lengths)
        last_RW = starts_R[:, None] + torch.arange(self._width, device=device)
        hidden_RWT = torch.arange(self._reach, device=device) > last_RW[..., None]
        bias_RWT = cache.table.new_zeros(hidden_RWT.shape).masked_fill_(hidden_RWT, -math.inf)
        self._bias_R1QT = bias_RWT.repeat(1, cache.groups, 1).unsqueeze(1)

    def __call__(self, layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /) -> tuple[Tensor, None]:
        """See `Attention`."""
        table = self._cache.table[layer]
        for table_RKTD, new_NKD in zip(table, (keys_NXD, values_NXD), strict=True):
            table_RKTD.transpose(1, 2).index_put_((self._rows_N, self._columns_N), new_NKD)
        keys_RKTD, values_RKTD = table[:, :, :, : self._reach]
        queries_RKQD = self._by_row(queries_NXD * queries_NXD.shape[-1] ** -0.5)
        outputs, start = [], 0
        for prefix in self._cache.prefixes:
            rows = slice(start, start + prefix.rows)
            columns = (keys_RKTD[rows], values_RKTD[rows], self._bias_R1QT[rows])
            outputs.append(_attend(queries_RKQD[rows], prefix.layers[layer], columns))
            start += prefix.rows
        return self._by_token(torch.cat(outputs)), None

    def _by_row(self, queries_NXD: Tensor) -> Tensor:
        """[rows, kv heads, Q, D]: the query heads of a key head one after another, each with all of a row's tokens."""
        rows, (_, heads, depth) = len(self._cache.lengths), queries_NXD.shape
        padded_RWXD = queries_NXD.new_zeros(rows, self._width, heads, depth)
        padded_RWXD[self._rows_N, self._places_N] = queries_NXD
        return padded_RWXD.view(rows, self._width, -1, self._cache.groups, depth).permute(0, 2, 3, 1, 4).flatten(2, 3)

    def _by_token(self, attended_RKQD: Tensor) -> Tensor:
        """Back from rows to tokens, [N, heads * D]."""
        by_head = attended_RKQD.unflatten(2, (self._cache.groups, self._width)).permute(0, 3, 1, 2, 4)
        by_token: Tensor = by_head[self._rows_N, self._places_N].flatten(1)
        return by_token


def _attend(queries_RKQD: Tensor, prefix: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Attention of some rows to their prefix, [K, P, D], and to their own columns, with one softmax over both."""
    (keys_KPD, values_KPD), (keys_RKTD, values_RKTD, bias_R1QT) = prefix, columns
    rows, _, width, _ = queries_RKQD.shape
    queries_KMD = queries_RKQD.transpose(0, 1).flatten(1, 2)
    to_prefix_RKQP = (queries_KMD @ keys_KPD.transpose(1, 2)).unflatten(1, (rows, width)).transpose(0, 1)
    to_columns_RKQT = queries_RKQD @ keys_RKTD.transpose(-1, -2) + bias_R1QT
    weights = torch.cat([to_prefix_RKQP, to_columns_RKQT], dim=-1).softmax(dim=-1)
    of_prefix_RKQP, of_columns_RKQT = weights.split([keys_KPD.shape[1], keys_RKTD.shape[2]], dim=-1)
    from_prefix_KMD = of_prefix_RKQP.transpose(0, 1).flatten(1, 2) @ values_KPD
    from_prefix_RKQD: Tensor = from_prefix_KMD.unflatten(1, (rows, width)).transpose(0, 1)
    outputs: Tensor = from_prefix_RKQD + of_columns_RKQT @ values_RKTD
    return outputs
