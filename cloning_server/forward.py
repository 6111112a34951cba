"""The base model's forward pass over packed examples, each student's with their own adapter, for training.

All tokens of all students go through the same frozen matrices together; attention and adapters are each student's own.
The arithmetic is that of the Llama family (Touvron et al., 2023). It reads the transformers model's own modules and
changes nothing in them; nothing is kept for the gradients of weights, which are frozen, and no gradient is computed
below the first adapter.

Knows nothing of losses, optimizers or students.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloning_server.factors import Factors, Pair
from cloning_server.kernels import rms_norm, rotate, swiglu, token_nats
from cloning_server.packing import Pack
from mesh.lm.architecture import Shape, require_supported


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    pairs: Mapping[str, Pair]
    scaling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What is the same in every layer. N: tokens of all packs; a pack's masks are for what is shared and for rows."""

    packs: Sequence[Pack]
    adapters: Sequence[_Adapter | None]
    cos_N1D: Tensor
    sin_N1D: Tensor
    masks: Sequence[tuple[Tensor, Tensor]]
    predicting_M: Tensor

    @property
    def sizes(self) -> list[int]:
        return [pack.size for pack in self.packs]


class Forward:
    """A base model's forward pass. Made in no time, as it copies nothing; the model may be used elsewhere in turns.

    Raises:
        BaseModelUnavailable: The model is of another architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_supported(model)
        self._shape = Shape.of(model)
        self._eps = float(model.config.rms_norm_eps)
        self._embed = model.get_submodule("model.embed_tokens")
        self._rotary = model.get_submodule("model.rotary_emb")
        self._layers = [model.get_submodule(f"model.layers.{index}") for index in range(self._shape.layers)]
        self._norm_H = model.get_parameter("model.norm.weight")
        self._head_VH = model.get_parameter("lm_head.weight")
        self.device = model.device
        self.dtype = self._norm_H.dtype

    def nats(self, packs: Sequence[Pack], adapters: Sequence[Factors | None]) -> list[Tensor]:
        """How unlikely each pack's reply tokens are under its adapter, or the base model where there is none.

        Returns:
            For each pack its tokens' nats, [M] in fp32, with gradients to the adapters' vectors.
        """
        targets_M = torch.cat([pack.targets_M for pack in packs])
        nats_M = token_nats(self._read(packs, adapters), self._head_VH, targets_M)
        return list(nats_M.split([len(pack.targets_M) for pack in packs]))

    def logits(self, pack: Pack, adapter: Factors | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of the logits of reply tokens, [B, vocabulary] in fp32, and of the tokens themselves, [B]."""
        x_MH = self._read([pack], [adapter])
        for x_BH, targets_B in zip(x_MH.split(64), pack.targets_M.split(64), strict=True):
            yield F.linear(x_BH, self._head_VH).float(), targets_B

    def _read(self, packs: Sequence[Pack], adapters: Sequence[Factors | None]) -> Tensor:
        """What the head reads to say each reply token, [M, hidden]."""
        now = self._prepare(packs, adapters)
        x_NH = self._embed(torch.cat([pack.tokens_N for pack in packs]))
        for index in range(self._shape.layers):
            x_NH = self._layer(index, x_NH, now)
        return rms_norm(x_NH, self._norm_H, self._eps)

    def _layer(self, index: int, x_NH: Tensor, now: _Pass) -> Tensor:
        layer, path = self._layers[index], f"model.layers.{index}"
        normed_NH = rms_norm(x_NH, layer.get_parameter("input_layernorm.weight"), self._eps)
        attended_NO = self._attention(layer, path, normed_NH, now)
        x_NH = x_NH + _map(layer, path, "self_attn.o_proj", attended_NO, now)
        normed_NH = rms_norm(x_NH, layer.get_parameter("post_attention_layernorm.weight"), self._eps)
        gated_NI = swiglu(
            _map(layer, path, "mlp.gate_proj", normed_NH, now), _map(layer, path, "mlp.up_proj", normed_NH, now)
        )
        x_NH = x_NH + _map(layer, path, "mlp.down_proj", gated_NI, now)
        # No later layer attends to anything: the head reads these alone.
        return x_NH[now.predicting_M] if index == self._shape.layers - 1 else x_NH

    def _attention(self, layer: nn.Module, path: str, normed_NH: Tensor, now: _Pass) -> Tensor:
        width = self._shape.head_width
        queries_NXD, keys_NXD, values_NXD = (
            _map(layer, path, f"self_attn.{name}", normed_NH, now).view(len(normed_NH), -1, width)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        queries_NXD = rotate(queries_NXD, now.cos_N1D, now.sin_N1D)
        keys_NXD = rotate(keys_NXD, now.cos_N1D, now.sin_N1D)
        attended = [
            one
            for pack, masks, queries, keys, values in zip(
                now.packs, now.masks,
                queries_NXD.split(now.sizes), keys_NXD.split(now.sizes), values_NXD.split(now.sizes), strict=True,
            )
            for one in _attend_pack(pack, masks, queries, keys, values)
        ]  # fmt: skip
        return torch.cat(attended)

    def _prepare(self, packs: Sequence[Pack], adapters: Sequence[Factors | None]) -> _Pass:
        positions_1N = torch.cat([pack.positions_N for pack in packs]).unsqueeze(0)
        cos_1ND, sin_1ND = self._rotary(self._norm_H, positions_1N)
        starts = [0]
        for pack in packs:
            starts.append(starts[-1] + pack.size)
        predicting = [start + pack.predicting_M for start, pack in zip(starts, packs, strict=False)]
        return _Pass(
            packs=packs,
            adapters=[
                None if one is None else _Adapter(pairs=one.pairs(self.dtype), scaling=one.scaling) for one in adapters
            ],
            cos_N1D=cos_1ND[0].unsqueeze(1),
            sin_N1D=sin_1ND[0].unsqueeze(1),
            masks=[self._masks(pack) for pack in packs],
            predicting_M=torch.cat(predicting),
        )

    def _masks(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """What is added to scores: 0 where a position is seen, minus infinity after it; a row for each query head."""
        places_T = torch.arange(pack.shared + pack.width, device=self.device)
        later_TT = places_T > places_T[:, None]
        bias_TT = torch.zeros(later_TT.shape, dtype=self.dtype, device=self.device).masked_fill_(later_TT, -math.inf)
        groups = self._shape.heads // self._shape.kv_heads
        return bias_TT[: pack.shared, : pack.shared].repeat(groups, 1), bias_TT[pack.shared :].repeat(groups, 1)


def _map(layer: nn.Module, path: str, name: str, x_NI: Tensor, now: _Pass) -> Tensor:
    """A frozen linear map, plus each student's own update where their adapter has one."""
    out_NO: Tensor = layer.get_submodule(name)(x_NI)
    pairs = [None if one is None else one.pairs.get(f"{path}.{name}") for one in now.adapters]
    if not any(pairs):
        return out_NO
    updated = []
    for adapter, pair, x_SI, out_SO in zip(
        now.adapters, pairs, x_NI.split(now.sizes), out_NO.split(now.sizes), strict=True
    ):
        if adapter is None or pair is None:
            updated.append(out_SO)
        else:
            updated.append(torch.addmm(out_SO, x_SI @ pair.a_RI.t() * adapter.scaling, pair.b_OR.t()))
    return torch.cat(updated) if len(updated) > 1 else updated[0]


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
