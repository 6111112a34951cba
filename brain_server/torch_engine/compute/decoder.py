"""The base model's forward pass, written for many replies at once: one step of a running batch.

A step reads one token for each reply that is being written (the lane) and a stretch of the prompt for replies that are
about to begin (segments). All tokens go through the same matrices together; attention and adapters are each reply's
own. The arithmetic is that of the Llama family (Touvron et al., 2023): RMSNorm, rotary positions, grouped-query
attention, SwiGLU; the weights and the table of positions are those of the transformers model.

For the torch thread. Knows nothing of students, requests or sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from brain_server.torch_engine.compute.kv_cache import KvCache
from brain_server.torch_engine.compute.norm import RmsNorm
from brain_server.torch_engine.compute.projections import Projection, take_projection
from mesh.lm.llama_shape import GROUPS, Shape, require_supported


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of one reply's tokens to read.

    Attributes:
        row: Of the cache.
        start: Position of the first token, which is how many the row holds.
        tokens: Token ids, at least one.
    """

    row: int
    start: int
    tokens: Sequence[int]


class Adapters(Protocol):
    """What adapters add to the maps in one step."""

    def add(self, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
        """Adds the rows' own updates for the inputs to the outputs, in place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    norm_in: RmsNorm
    kqv: Projection
    o: Projection
    norm_out: RmsNorm
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """The tensors of one step that are the same in every layer. N: tokens, B: rows of the lane, T: longest row."""

    lane: int
    segments: Sequence[tuple[slice, Segment]]
    places: tuple[Tensor, Tensor]
    cos_N1D: Tensor
    sin_N1D: Tensor
    reach: int
    mask_B11T: Tensor
    segment_masks: Sequence[Tensor | None]


class Decoder:
    """A base model that reads many replies' tokens in one pass."""

    def __init__(self, model: PreTrainedModel, *, rows: int, context_tokens: int) -> None:
        """Takes the weights out of a transformers model, which can't be used any more after that.

        Args:
            model: Of one of the architectures above, in eval mode.
            rows: Replies at the same time.
            context_tokens: Tokens of one reply with its prompt; no more than the model's own limit.

        Raises:
            BaseModelUnavailable: It is of another architecture.
        """
        require_supported(model)
        self.shape = shape = Shape.of(model)
        eps = float(model.config.rms_norm_eps)
        self._embedding_VH = model.get_parameter("model.embed_tokens.weight").data
        self._dtype = self._embedding_VH.dtype
        self.device = self._embedding_VH.device
        self._layers = [
            _take_layer(model.get_submodule(f"model.layers.{index}"), eps=eps) for index in range(shape.layers)
        ]
        self._norm = RmsNorm(model.get_parameter("model.norm.weight").data, eps=eps)
        self._head = take_projection([_untied(model.get_submodule("lm_head"), self._embedding_VH)])
        positions = torch.arange(context_tokens, device=self.device)
        with torch.inference_mode():
            cos_1TD, sin_1TD = model.get_submodule("model.rotary_emb")(self._embedding_VH, positions[None])
        self._cos_TD, self._sin_TD = cos_1TD[0].to(self._dtype), sin_1TD[0].to(self._dtype)
        self.cache = KvCache(
            layers=shape.layers, rows=rows, heads=shape.kv_heads, context_tokens=context_tokens,
            width=shape.head_width, dtype=self._dtype, device=self.device,
        )  # fmt: skip

    @torch.inference_mode()
    def step(
        self,
        lane: Sequence[Segment],
        segments: Sequence[Segment],
        *,
        adapters: Adapters | None,
        logits_of: Sequence[int],
    ) -> Tensor:
        """Reads tokens and writes their keys and values to the cache.

        Args:
            lane: One token each, in rows 0, 1, 2 ... of the cache.
            segments: In other rows; no row twice.
            adapters: What adapters add; its rows are the tokens, those of the lane first. None for the base model.
            logits_of: Which tokens' logits are wanted, as places in the lane followed by the segments.

        Returns:
            Logits of the wanted tokens' successors, [wanted, vocabulary], in float32 on the CPU.
        """
        step = self._prepare(lane, segments)
        tokens_N = [token for one in (*lane, *segments) for token in one.tokens]
        x_NH = self._embedding_VH[torch.tensor(tokens_N, device=self.device)]
        for index, layer in enumerate(self._layers):
            x_NH = self._layer(index, layer, x_NH, step, adapters)
        if not logits_of:
            return torch.empty(0, self.shape.vocabulary)
        wanted_MH = self._norm(x_NH[torch.tensor(logits_of, device=self.device)])
        return self._head(wanted_MH).float().cpu()

    def _layer(self, index: int, layer: _Layer, x_NH: Tensor, step: _Step, adapters: Adapters | None) -> Tensor:
        normed_NH = layer.norm_in(x_NH)
        kqv_NO = layer.kqv(normed_NH)
        if adapters is not None:
            adapters.add(index, "kqv", normed_NH, kqv_NO)
        attended_NO = self._attention(index, kqv_NO, step)
        x_NH = layer.o.add(attended_NO, x_NH)
        if adapters is not None:
            adapters.add(index, "o", attended_NO, x_NH)
        normed_NH = layer.norm_out(x_NH)
        gate_up_NO = layer.gate_up(normed_NH)
        if adapters is not None:
            adapters.add(index, "gate_up", normed_NH, gate_up_NO)
        gate_NI, up_NI = gate_up_NO.tensor_split(2, dim=-1)
        gated_NI = F.silu(gate_NI).mul_(up_NI)
        x_NH = layer.down.add(gated_NI, x_NH)
        if adapters is not None:
            adapters.add(index, "down", gated_NI, x_NH)
        return x_NH

    def _attention(self, index: int, kqv_NO: Tensor, step: _Step) -> Tensor:
        shape = self.shape
        heads, kv_heads, width = shape.heads, shape.kv_heads, shape.head_width
        kqv_NXD = kqv_NO.view(-1, heads + 2 * kv_heads, width)
        rotated_NXD = _rotate(kqv_NXD[:, : kv_heads + heads], step.cos_N1D, step.sin_N1D)
        queries_NXD = rotated_NXD[:, kv_heads:]
        keys_RXTD, values_RXTD = self.cache.layers[index]
        self.cache.write(index, step.places, keys_NXD=rotated_NXD[:, :kv_heads], values_NXD=kqv_NXD[:, -kv_heads:])
        if lane := step.lane:
            # The queries that share a key head stand where a sequence's would: each sees all of its row.
            attended_BXGD = F.scaled_dot_product_attention(
                queries_NXD[:lane].reshape(lane, kv_heads, heads // kv_heads, width),
                keys_RXTD[:lane, :, : step.reach],
                values_RXTD[:lane, :, : step.reach],
                attn_mask=step.mask_B11T,
            )
            attended_BO = attended_BXGD.reshape(lane, heads * width)
            if not step.segments:
                return attended_BO
        attended_NO = kqv_NO.new_empty(len(kqv_NO), heads * width)
        if lane:
            attended_NO[:lane] = attended_BO
        for (place, segment), mask in zip(step.segments, step.segment_masks, strict=True):
            end = segment.start + len(segment.tokens)
            attended_NO[place] = self._read(queries_NXD[place], keys_RXTD[segment.row, :, :end],
                                            values_RXTD[segment.row, :, :end], mask)  # fmt: skip
        return attended_NO

    def _read(self, queries_SXD: Tensor, keys_XTD: Tensor, values_XTD: Tensor, mask_ST: Tensor | None) -> Tensor:
        """Attention of a segment to its row; no mask: the segment begins the row."""
        count, heads, width = queries_SXD.shape
        groups = (self.shape.kv_heads, heads // self.shape.kv_heads, -1, width)
        attended_XGSD = F.scaled_dot_product_attention(
            queries_SXD.transpose(0, 1).view(*groups[:2], count, width),
            keys_XTD[:, None].expand(groups),
            values_XTD[:, None].expand(groups),
            attn_mask=mask_ST,
            is_causal=mask_ST is None,
        )
        return attended_XGSD.flatten(0, 1).transpose(0, 1).reshape(count, heads * width)

    def _prepare(self, lane: Sequence[Segment], segments: Sequence[Segment]) -> _Step:
        device = self.device
        rows = [one.row for one in (*lane, *segments) for _ in one.tokens]
        positions = [one.start + place for one in (*lane, *segments) for place in range(len(one.tokens))]
        positions_N = torch.tensor(positions, device=device)
        reach = max((one.start + 1 for one in lane), default=0)
        seen_BT = torch.arange(reach, device=device) <= positions_N[: len(lane), None]
        places, at = [], len(lane)
        for segment in segments:
            places.append((slice(at, at + len(segment.tokens)), segment))
            at += len(segment.tokens)
        return _Step(
            lane=len(lane),
            segments=places,
            places=(torch.tensor(rows, device=device), positions_N),
            cos_N1D=self._cos_TD[positions_N].unsqueeze(1),
            sin_N1D=self._sin_TD[positions_N].unsqueeze(1),
            reach=reach,
            mask_B11T=self._bias(seen_BT)[:, None, None],
            segment_masks=[self._segment_mask(segment) for segment in segments],
        )

    def _segment_mask(self, segment: Segment) -> Tensor | None:
        if segment.start == 0:
            return None
        end = segment.start + len(segment.tokens)
        places_T = torch.arange(end, device=self.device)
        return self._bias(places_T <= places_T[segment.start :, None])

    def _bias(self, seen: Tensor) -> Tensor:
        """What is added to scores: 0 where a position is seen, minus infinity elsewhere."""
        return torch.zeros(seen.shape, dtype=self._dtype, device=self.device).masked_fill_(~seen, -torch.inf)


def _rotate(x_NXD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """Rotary positions (Su et al., "RoFormer", 2021), the halves of a head being the parts of complex numbers."""
    half = x_NXD.shape[-1] // 2
    rotated = x_NXD * cos_N1D
    rotated[..., :half].addcmul_(x_NXD[..., half:], sin_N1D[..., :half], value=-1)
    rotated[..., half:].addcmul_(x_NXD[..., :half], sin_N1D[..., half:])
    return rotated


def _take_layer(layer: nn.Module, *, eps: float) -> _Layer:
    def take(parent: str, group: str) -> Projection:
        return take_projection([layer.get_submodule(f"{parent}.{module}") for module in GROUPS[group]])

    return _Layer(
        norm_in=RmsNorm(layer.get_parameter("input_layernorm.weight").data, eps=eps),
        kqv=take("self_attn", "kqv"),
        o=take("self_attn", "o"),
        norm_out=RmsNorm(layer.get_parameter("post_attention_layernorm.weight").data, eps=eps),
        gate_up=take("mlp", "gate_up"),
        down=take("mlp", "down"),
    )


def _untied(head: nn.Module, embedding_VH: Tensor) -> nn.Module:
    """A head whose weight can be taken without taking the embedding's, which it may share."""
    if type(head) is not nn.Linear or head.weight.data_ptr() != embedding_VH.data_ptr():
        return head
    untied = nn.Linear(1, 1, bias=False, device="meta")
    untied.weight = nn.Parameter(head.weight.data, requires_grad=False)
    return untied
