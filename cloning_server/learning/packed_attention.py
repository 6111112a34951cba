"""Attention for packed examples: among prompts, whose keys and values are stored, then of replies to their prompts.

Knows nothing of models, adapters or what tokens mean.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cloning_server.compute.kernels import AttentionBackward, attend
from cloning_server.compute.layers import KeyValueBackward
from cloning_server.learning.packing import Pack
from mesh.lm.llama_shape import Shape


class PromptAttention:
    """In each pack, the shared tokens attend to themselves; each row attends to the shared tokens and to itself.

    Args:
        packs: The packs whose prompts are computed.
        shape: The model's.
        like: Any tensor of the dtype and on the device of the computation.

    Attributes:
        cache: By layer, for each pack the keys and values that its replies attend to, [rows, kv heads, tokens, D] each.
    """

    def __init__(self, packs: Sequence[Pack], *, shape: Shape, like: Tensor) -> None:
        self.cache: list[list[tuple[Tensor, Tensor]]] = []
        self._sizes = [len(pack.prompts_N) for pack in packs]
        self._prompts = [_PackPrompts(pack, shape=shape, like=like) for pack in packs]

    def __call__(
        self, _layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, None]:
        """See `Attention`; called once per layer, in order."""
        parts = _by_pack(self._sizes, queries_NXD, keys_NXD, values_NXD)
        outputs: list[Tensor] = []
        cache = []
        for prompts, (queries_PXD, keys_PKD, values_PKD) in zip(self._prompts, parts, strict=True):
            keys_RKTD, values_RKTD = prompts.cached(keys_PKD), prompts.cached(values_PKD)
            outputs += prompts.attend(queries_PXD, keys_PKD, values_PKD, cache=(keys_RKTD, values_RKTD))
            cache.append((keys_RKTD, values_RKTD))
        self.cache.append(cache)
        return torch.cat(outputs), None

    def back(self, grads: Sequence[Tensor]) -> Tensor:
        """Maps the gradients of each pack's cached keys, or values, to those of the prompts' tokens, concatenated."""
        pieces = [prompts.back(grad_RKTD) for prompts, grad_RKTD in zip(self._prompts, grads, strict=True)]
        return torch.cat([tensor for pair in pieces for tensor in pair])


class ReplyAttention:
    """Each reply attends to the prompt that it answers, and to itself.

    Args:
        packs: The packs whose replies are computed.
        prompts: The attention of their prompts, which holds the cached keys and values.
        shape: The model's.
        like: Any tensor of the dtype and on the device of the computation.
        prompt_backwards: By layer, takes the gradients of the prompts' keys and values; empty if there is no backward
            pass.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        prompts: PromptAttention,
        *,
        shape: Shape,
        like: Tensor,
        prompt_backwards: Sequence[KeyValueBackward] = (),
    ) -> None:
        self._prompts = prompts
        self._prompt_backwards = prompt_backwards
        self._sizes = [len(pack.replies_M) for pack in packs]
        self._replies = [_PackReplies(pack, shape=shape, like=like) for pack in packs]

    def __call__(
        self, layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, AttentionBackward]:
        """See `Attention`; the prompts' attention has computed this layer before."""
        parts = _by_pack(self._sizes, queries_NXD, keys_NXD, values_NXD)
        outputs, backs = [], []
        for replies, part, cache in zip(self._replies, parts, self._prompts.cache[layer], strict=True):
            attended_MO, back_of_pack = replies.attend(*part, cache=cache)
            outputs.append(attended_MO)
            backs.append(back_of_pack)

        def back(grad_NO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            grads = zip(self._replies, backs, grad_NO.split(self._sizes), strict=True)
            gradients = [replies.back(back_of_pack, grad_MO) for replies, back_of_pack, grad_MO in grads]
            queries, keys, values, cached_keys, cached_values = zip(*gradients, strict=True)
            self._prompt_backwards[layer](self._prompts.back(cached_keys), self._prompts.back(cached_values))
            return torch.cat(queries), torch.cat(keys), torch.cat(values)

        return torch.cat(outputs), back


class _RaggedRows:
    """Converts rows of different lengths between two layouts: concatenated, and padded to the longest."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = lengths
        self.longest = max(lengths)
        places = [row * self.longest + place for row, length in enumerate(lengths) for place in range(length)]
        self._places_N = torch.tensor(places, dtype=torch.long, device=device)

    def pad(self, flat_NXD: Tensor) -> Tensor:
        """[rows, longest, ...]; the padding is zero, as 0 times garbage may be NaN."""
        rows = len(self.lengths)
        padded = flat_NXD.new_zeros(rows * self.longest, *flat_NXD.shape[1:]).index_copy_(0, self._places_N, flat_NXD)
        rows_RLXD: Tensor = padded.unflatten(0, (rows, self.longest))
        return rows_RLXD

    def concatenate(self, rows_RLXD: Tensor) -> Tensor:
        """[N, ...]: the rows without their padding."""
        return rows_RLXD.flatten(0, 1).index_select(0, self._places_N)


class _PackPrompts:
    """The prompts of one pack: tokens that all rows share, then each row's own."""

    def __init__(self, pack: Pack, *, shape: Shape, like: Tensor) -> None:
        self._shared_tokens = pack.shared_tokens
        self._rows = _RaggedRows(pack.prompt_lengths, like.device)
        self._shared_bias, self._rows_bias = _prompt_biases(pack, shape, like)

    def cached(self, x_PKD: Tensor) -> Tensor:
        """Keys or values as replies attend to them, [R, K, S + W, D]."""
        shared_1KSD = x_PKD[: self._shared_tokens].unsqueeze(0).transpose(1, 2)
        return _appended(shared_1KSD, self._rows.pad(x_PKD[self._shared_tokens :]))

    def attend(
        self, queries_PXD: Tensor, keys_PKD: Tensor, values_PKD: Tensor, *, cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The attended values of the shared tokens, [S, O], and of the rows' own, [P - S, O]."""
        queries_1SXD, keys_1SKD, values_1SKD = (
            x_PXD[: self._shared_tokens].unsqueeze(0) for x_PXD in (queries_PXD, keys_PKD, values_PKD)
        )
        shared_1SO, _ = _attend(queries_1SXD, keys_1SKD.transpose(1, 2), values_1SKD.transpose(1, 2), self._shared_bias)
        queries_RWXD = self._rows.pad(queries_PXD[self._shared_tokens :])
        rows_RWO, _ = _attend(queries_RWXD, *cache, self._rows_bias)
        return shared_1SO.squeeze(0), self._rows.concatenate(rows_RWO)

    def back(self, grad_RKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Maps the gradient of `cached` to that of the shared tokens, [S, K, D], and of the rows' own."""
        to_shared_RKSD, to_rows_RKWD = grad_RKTD.split([self._shared_tokens, self._rows.longest], dim=2)
        return to_shared_RKSD.sum(0).transpose(0, 1), self._rows.concatenate(to_rows_RKWD.transpose(1, 2))


class _PackReplies:
    """The replies of one pack, one row each."""

    def __init__(self, pack: Pack, *, shape: Shape, like: Tensor) -> None:
        self._rows = _RaggedRows(pack.reply_lengths, like.device)
        self._bias = _reply_bias(pack, shape, like)

    def attend(
        self, queries_MXD: Tensor, keys_MKD: Tensor, values_MKD: Tensor, *, cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, AttentionBackward]:
        """The attended values, [M, O], and the backward function for `back`."""
        cached_keys_RKPD, cached_values_RKPD = cache
        attended_RLO, back = _attend(
            self._rows.pad(queries_MXD),
            _appended(cached_keys_RKPD, self._rows.pad(keys_MKD)),
            _appended(cached_values_RKPD, self._rows.pad(values_MKD)),
            self._bias,
        )
        return self._rows.concatenate(attended_RLO), back

    def back(self, attention_back: AttentionBackward, grad_MO: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The gradients of queries, keys and values, [M, ...], and of the cached keys and values, [R, K, P, D]."""
        to_queries_RLXD, to_keys_RKTD, to_values_RKTD = attention_back(self._rows.pad(grad_MO))
        cached_keys_RKPD, keys_RKLD = self._split(to_keys_RKTD)
        cached_values_RKPD, values_RKLD = self._split(to_values_RKTD)
        return (
            self._rows.concatenate(to_queries_RLXD),
            self._rows.concatenate(keys_RKLD.transpose(1, 2)),
            self._rows.concatenate(values_RKLD.transpose(1, 2)),
            cached_keys_RKPD,
            cached_values_RKPD,
        )

    def _split(self, grad_RKTD: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the cache, and the replies' own."""
        longest = self._rows.longest
        cached_RKPD, own_RKLD = grad_RKTD.split([grad_RKTD.shape[2] - longest, longest], dim=2)
        return cached_RKPD, own_RKLD


def _by_pack(sizes: Sequence[int], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """For each pack its part of every tensor."""
    return list(zip(*(tensor.split(list(sizes)) for tensor in tensors), strict=True))


def _prompt_biases(pack: Pack, shape: Shape, like: Tensor) -> tuple[Tensor, Tensor]:
    """The biases of the shared tokens and of the rows; see `_bias`."""
    places_T = torch.arange(pack.shared_tokens + max(pack.prompt_lengths), device=like.device)
    bias_TT = _bias(places_T > places_T[:, None], like.dtype)
    groups = shape.heads // shape.kv_heads
    shared_SS = bias_TT[: pack.shared_tokens, : pack.shared_tokens]
    return shared_SS.repeat(groups, 1), bias_TT[pack.shared_tokens :].repeat(groups, 1)


def _reply_bias(pack: Pack, shape: Shape, like: Tensor) -> Tensor:
    """Each reply token attends to all of its prompt, and to the reply up to itself; see `_bias`."""
    longest, cached = max(pack.reply_lengths), pack.shared_tokens + max(pack.prompt_lengths)
    places_T = torch.arange(cached + longest, device=like.device)
    ends_R = pack.shared_tokens + torch.tensor(pack.prompt_lengths, device=like.device)
    padding_RT = (places_T >= ends_R[:, None]) & (places_T < cached)
    later_LT = places_T > places_T[cached:, None]
    bias_RLT = _bias(padding_RT[:, None] | later_LT, like.dtype)
    return bias_RLT.repeat(1, shape.heads // shape.kv_heads, 1).unsqueeze(1)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to the scores: minus infinity where a query (second last dimension) must not attend to a key (last)."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)


def _appended(before_RKSD: Tensor, rows_RWKD: Tensor) -> Tensor:
    """Keys or values before, then each row's own, [R, K, S + W, D]; a single row before is shared by all rows."""
    rows_RKWD = rows_RWKD.transpose(1, 2)
    return torch.cat([before_RKSD.expand(len(rows_RKWD), -1, -1, -1), rows_RKWD], dim=2)


def _attend(
    queries_RWXD: Tensor, keys_RKTD: Tensor, values_RKTD: Tensor, bias: Tensor
) -> tuple[Tensor, AttentionBackward]:
    """Attention of R rows of W queries to T keys each; Q holds the W queries of each query head of a key head in turn.

    Args:
        queries_RWXD: Queries.
        keys_RKTD: Keys.
        values_RKTD: Values.
        bias: Added to the scores, [Q, T], or [R, 1, Q, T] where rows differ.

    Returns:
        The attended values, [R, W, X * D], and the backward function.
    """
    rows, width, heads, depth = queries_RWXD.shape
    groups = (keys_RKTD.shape[1], heads // keys_RKTD.shape[1])

    def by_key(x_RWO: Tensor) -> Tensor:
        return x_RWO.view(rows, width, *groups, depth).permute(0, 2, 3, 1, 4).flatten(2, 3)

    def by_query(x_RKQD: Tensor) -> Tensor:
        by_query_RWXD: Tensor = x_RKQD.unflatten(2, (groups[1], width)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return by_query_RWXD

    attended_RKQD, attended_back = attend(by_key(queries_RWXD), keys_RKTD, values_RKTD, bias)

    def back(grad_RWO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        to_queries_RKQD, to_keys_RKTD, to_values_RKTD = attended_back(by_key(grad_RWO))
        return by_query(to_queries_RKQD), to_keys_RKTD, to_values_RKTD

    return by_query(attended_RKQD).flatten(2), back
