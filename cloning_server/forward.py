"""The base model's forward pass over packed examples, each student's with their own adapter, for training.

Nothing is kept for the gradients of weights, which are frozen, and no gradient is computed below the first adapter.

Knows nothing of losses, optimizers or students.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cloning_server.factors import Factors
from cloning_server.kernels import token_nats
from cloning_server.layers import Adapter, Layers, Pass, Stretch, layers_of
from cloning_server.packing import Pack


class Forward:
    """A base model's forward pass. Made in no time, as it copies nothing; the model may be used elsewhere in turns.

    Raises:
        BaseModelUnavailable: The model is of another architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = layers_of(model)
        self.device = self.layers.device

    def nats(self, packs: Sequence[Pack], adapters: Sequence[Factors | None]) -> list[Tensor]:
        """How unlikely each pack's reply tokens are under its adapter, or the base model where there is none.

        Returns:
            For each pack its tokens' nats, [M] in fp32, with gradients to the adapters' vectors.
        """
        targets_M = torch.cat([pack.targets_M for pack in packs])
        nats_M = token_nats(self._read(packs, adapters), self.layers.head_VH, targets_M)
        return list(nats_M.split([len(pack.targets_M) for pack in packs]))

    def logits(self, pack: Pack, adapter: Factors | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of the logits of reply tokens, [B, vocabulary] in fp32, and of the tokens themselves, [B]."""
        x_MH = self._read([pack], [adapter])
        for x_BH, targets_B in zip(x_MH.split(64), pack.targets_M.split(64), strict=True):
            yield F.linear(x_BH, self.layers.head_VH).float(), targets_B

    def _read(self, packs: Sequence[Pack], adapters: Sequence[Factors | None]) -> Tensor:
        """What the head reads to say each reply token, [M, hidden]."""
        starts = [0]
        for pack in packs:
            starts.append(starts[-1] + pack.size)
        dtype = self.layers.dtype
        now = Pass(
            tokens_N=torch.cat([pack.tokens_N for pack in packs]),
            positions_N=torch.cat([pack.positions_N for pack in packs]),
            stretches=[
                Stretch(
                    tokens=pack.size,
                    wanted=len(pack.targets_M),
                    adapter=None if one is None else Adapter.of(one, dtype),
                )
                for pack, one in zip(packs, adapters, strict=True)
            ],
            attend=_PackedAttention(packs, layers=self.layers),
            wanted_M=torch.cat([start + pack.predicting_M for start, pack in zip(starts, packs, strict=False)]),
        )
        return self.layers.read(now)


class _PackedAttention:
    """In each pack what is shared sees itself, and each row sees what is shared and itself."""

    def __init__(self, packs: Sequence[Pack], *, layers: Layers) -> None:
        self._packs = packs
        self._groups = layers.shape.heads // layers.shape.kv_heads
        self._masks = [self._masks_of(pack, layers) for pack in packs]

    def __call__(self, _layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /) -> Tensor:
        """See `Attention`; the same in every layer."""
        sizes = [pack.size for pack in self._packs]
        parts = (one.split(sizes) for one in (queries_NXD, keys_NXD, values_NXD))
        attended = [
            one
            for pack, masks, queries, keys, values in zip(self._packs, self._masks, *parts, strict=True)
            for one in _attend_pack(pack, masks, queries, keys, values)
        ]
        return torch.cat(attended)

    def _masks_of(self, pack: Pack, layers: Layers) -> tuple[Tensor, Tensor]:
        """What is added to scores: 0 where a position is seen, minus infinity after it; a row for each query head."""
        places_T = torch.arange(pack.shared + pack.width, device=layers.device)
        later_TT = places_T > places_T[:, None]
        bias_TT = torch.zeros(later_TT.shape, dtype=layers.dtype, device=layers.device)
        bias_TT.masked_fill_(later_TT, -math.inf)
        return bias_TT[: pack.shared, : pack.shared].repeat(self._groups, 1), bias_TT[pack.shared :].repeat(
            self._groups, 1
        )


def _attend_pack(
    pack: Pack, masks: tuple[Tensor, Tensor], queries_SXD: Tensor, keys_SXD: Tensor, values_SXD: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of what is shared to itself, then of each row to what is shared and to itself; [tokens, heads * D]."""
    shared_mask, rows_mask = masks
    sizes = [pack.shared, pack.rows * pack.width]
    (queries_h, queries_r), (keys_h, keys_r), (values_h, values_r) = (
        one.split(sizes) for one in (queries_SXD, keys_SXD, values_SXD)
    )

    def with_shared(shared_PXD: Tensor, rows_LXD: Tensor) -> Tensor:
        seen = shared_PXD.expand(pack.rows, *shared_PXD.shape)
        return torch.cat([seen, rows_LXD.unflatten(0, (pack.rows, pack.width))], dim=1)

    shared = _attend(queries_h[None], keys_h[None], values_h[None], shared_mask)
    rows = _attend(
        queries_r.unflatten(0, (pack.rows, pack.width)),
        with_shared(keys_h, keys_r),
        with_shared(values_h, values_r),
        rows_mask,
    )
    return shared, rows


def _attend(queries_RWXD: Tensor, keys_RTKD: Tensor, values_RTKD: Tensor, mask_QT: Tensor) -> Tensor:
    """Attention of R rows of W queries to T keys each; the X query heads of a key head stand one after another in Q."""
    rows, width, heads, depth = queries_RWXD.shape
    groups = (keys_RTKD.shape[2], heads // keys_RTKD.shape[2])
    queries_RKQD = queries_RWXD.view(rows, width, *groups, depth).permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys_RKTD, values_RKTD = keys_RTKD.transpose(1, 2), values_RTKD.transpose(1, 2)
    if queries_RWXD.is_cuda:
        attended_RKQD = F.scaled_dot_product_attention(queries_RKQD, keys_RKTD, values_RKTD, attn_mask=mask_QT)
    else:
        # For rows this short, three products; the gradient of torch's fused kernel takes thrice as long on a CPU.
        scores_RKQT = (queries_RKQD * depth**-0.5) @ keys_RKTD.transpose(-1, -2) + mask_QT
        attended_RKQD = scores_RKQT.softmax(dim=-1) @ values_RKTD
    attended: Tensor = attended_RKQD.unflatten(2, (groups[1], width)).permute(0, 3, 1, 2, 4)
    return attended.reshape(rows * width, heads * depth)
