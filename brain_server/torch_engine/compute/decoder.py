"""The base model's forward pass for many replies at once: one step of the running batch.

A step reads one token of each reply that is being decoded (the lane), and segments of several tokens (the prefill): of
prompts that are being read, and of text that must follow the token of a reply. All tokens go through the same matrices
together; attention and adapters are per reply. The arithmetic is that of the Llama family (Touvron et al., 2023):
RMSNorm, rotary positions, grouped-query attention, SwiGLU. The weights and the table of positions come from the
transformers model.

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
    """Consecutive tokens of one row to read.

    Attributes:
        row: Index of the row in the cache.
        start: Position of the first token, which is the number of tokens that the cache row holds.
        tokens: Token ids, at least one.
    """

    row: int
    start: int
    tokens: Sequence[int]


class Adapters(Protocol):
    """What adapters add to the outputs of the model's linear maps in one step."""

    def add(self, layer: int, group: str, x_NI: Tensor, out_NO: Tensor) -> None:
        """Adds each row's own update for its input to its output, in place."""
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
class _PassInputs:
    """What every layer of one step needs. N: tokens, B: rows of the lane, T: tokens of the lane's longest row.

    Attributes:
        lane_rows: Number of rows in the lane, whose tokens come first.
        prefill: Each segment of the prefill with the range of its tokens among the step's tokens.
        cache_places: Row and position of each token, [N] each.
        cos_N1D: Cosines of the rotary positions.
        sin_N1D: Sines of the rotary positions.
        lane_tokens: Tokens of the lane's longest row, including the one to read.
        lane_mask_B11T: Added to the lane's attention scores.
        prefill_masks: Added to the attention scores of each segment; None for a segment at the start of its row.
    """

    lane_rows: int
    prefill: Sequence[tuple[slice, Segment]]
    cache_places: tuple[Tensor, Tensor]
    cos_N1D: Tensor
    sin_N1D: Tensor
    lane_tokens: int
    lane_mask_B11T: Tensor
    prefill_masks: Sequence[Tensor | None]


class Decoder:
    """A base model that reads tokens of many replies in one pass."""

    def __init__(self, model: PreTrainedModel, *, rows: int, context_tokens: int) -> None:
        """Moves the weights out of a transformers model, which can't be used after that.

        Args:
            model: A model of the Llama family, in eval mode.
            rows: Number of rows in the cache: replies at the same time.
            context_tokens: Upper bound of a prompt with its reply, in tokens; at most the model's own limit.

        Raises:
            BaseModelUnavailable: The model has another architecture.
        """
        require_supported(model, advice="try ENGINE=vllm to serve this model")
        self.shape = shape = Shape.of(model)
        eps = float(model.config.rms_norm_eps)
        self._embedding_VH = model.get_parameter("model.embed_tokens.weight").data
        self._dtype = self._embedding_VH.dtype
        self.device = self._embedding_VH.device
        self._layers = [
            _take_layer(model.get_submodule(f"model.layers.{index}"), eps=eps) for index in range(shape.layers)
        ]
        self._norm = RmsNorm(model.get_parameter("model.norm.weight").data, eps=eps)
        self._head = take_projection([_untied_head(model.get_submodule("lm_head"), self._embedding_VH)])
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
        prefill: Sequence[Segment],
        *,
        adapters: Adapters | None,
        logits_of: Sequence[int],
    ) -> Tensor:
        """Reads tokens and writes their keys and values to the cache.

        Args:
            lane: Segments of one token each, in rows 0, 1, 2 ... of the cache.
            prefill: Segments in other rows, or behind the lane's token in its row; at most one per row.
            adapters: What adapters add to each token, those of the lane first. None if only the base model decodes.
            logits_of: Indices of the tokens to compute logits of, among the tokens of the lane and then the prefill.

        Returns:
            Logits of those tokens' successors, [len(logits_of), vocabulary], in float32 on the CPU.
        """
        inputs = self._prepare(lane, prefill)
        tokens_N = [token for segment in (*lane, *prefill) for token in segment.tokens]
        x_NH = self._embedding_VH[torch.tensor(tokens_N, device=self.device)]
        for index, layer in enumerate(self._layers):
            x_NH = self._layer(index, layer, x_NH, inputs, adapters)
        if not logits_of:
            return torch.empty(0, self.shape.vocabulary)
        normed_MH = self._norm(x_NH[torch.tensor(logits_of, device=self.device)])
        return self._head(normed_MH).float().cpu()

    def _layer(self, index: int, layer: _Layer, x_NH: Tensor, inputs: _PassInputs, adapters: Adapters | None) -> Tensor:
        normed_NH = layer.norm_in(x_NH)
        kqv_NO = layer.kqv(normed_NH)
        if adapters is not None:
            adapters.add(index, "kqv", normed_NH, kqv_NO)
        attended_NO = self._attention(index, kqv_NO, inputs)
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

    def _attention(self, index: int, kqv_NO: Tensor, inputs: _PassInputs) -> Tensor:
        shape = self.shape
        heads, kv_heads, width = shape.heads, shape.kv_heads, shape.head_width
        kqv_NXD = kqv_NO.view(-1, heads + 2 * kv_heads, width)
        rotated_NXD = _rotate(kqv_NXD[:, : kv_heads + heads], inputs.cos_N1D, inputs.sin_N1D)
        queries_NXD = rotated_NXD[:, kv_heads:]
        keys_RXTD, values_RXTD = self.cache.layers[index]
        keys_NXD, values_NXD = rotated_NXD[:, :kv_heads], kqv_NXD[:, -kv_heads:]
        self.cache.write(index, inputs.cache_places, keys_NXD=keys_NXD, values_NXD=values_NXD)
        if lane_rows := inputs.lane_rows:
            # The queries that share a key head take the place of a sequence: each attends to its whole row.
            attended_BXGD = F.scaled_dot_product_attention(
                queries_NXD[:lane_rows].reshape(lane_rows, kv_heads, heads // kv_heads, width),
                keys_RXTD[:lane_rows, :, : inputs.lane_tokens],
                values_RXTD[:lane_rows, :, : inputs.lane_tokens],
                attn_mask=inputs.lane_mask_B11T,
            )
            attended_BO = attended_BXGD.reshape(lane_rows, heads * width)
            if not inputs.prefill:
                return attended_BO
        attended_NO = kqv_NO.new_empty(len(kqv_NO), heads * width)
        if lane_rows:
            attended_NO[:lane_rows] = attended_BO
        for (tokens, segment), mask in zip(inputs.prefill, inputs.prefill_masks, strict=True):
            end = segment.start + len(segment.tokens)
            attended_NO[tokens] = self._attend(queries_NXD[tokens], keys_RXTD[segment.row, :, :end],
                                               values_RXTD[segment.row, :, :end], mask)  # fmt: skip
        return attended_NO

    def _attend(self, queries_SXD: Tensor, keys_XTD: Tensor, values_XTD: Tensor, mask_ST: Tensor | None) -> Tensor:
        """Attention of a segment to its row. Without a mask the segment is the start of the row."""
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

    def _prepare(self, lane: Sequence[Segment], prefill: Sequence[Segment]) -> _PassInputs:
        device = self.device
        rows = [segment.row for segment in (*lane, *prefill) for _ in segment.tokens]
        positions = [segment.start + index for segment in (*lane, *prefill) for index in range(len(segment.tokens))]
        positions_N = torch.tensor(positions, device=device)
        lane_tokens = max((segment.start + 1 for segment in lane), default=0)
        is_visible_BT = torch.arange(lane_tokens, device=device) <= positions_N[: len(lane), None]
        token_ranges, start = [], len(lane)
        for segment in prefill:
            token_ranges.append((slice(start, start + len(segment.tokens)), segment))
            start += len(segment.tokens)
        return _PassInputs(
            lane_rows=len(lane),
            prefill=token_ranges,
            cache_places=(torch.tensor(rows, device=device), positions_N),
            cos_N1D=self._cos_TD[positions_N].unsqueeze(1),
            sin_N1D=self._sin_TD[positions_N].unsqueeze(1),
            lane_tokens=lane_tokens,
            lane_mask_B11T=self._mask(is_visible_BT)[:, None, None],
            prefill_masks=[self._segment_mask(segment) for segment in prefill],
        )

    def _segment_mask(self, segment: Segment) -> Tensor | None:
        if segment.start == 0:
            return None
        end = segment.start + len(segment.tokens)
        positions_T = torch.arange(end, device=self.device)
        return self._mask(positions_T <= positions_T[segment.start :, None])

    def _mask(self, is_visible: Tensor) -> Tensor:
        """Returns what to add to attention scores: 0 where a position is visible, minus infinity elsewhere."""
        zeros = torch.zeros(is_visible.shape, dtype=self._dtype, device=self.device)
        return zeros.masked_fill_(~is_visible, -torch.inf)


def _rotate(x_NXD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """Rotary positions (Su et al., "RoFormer", 2021). The halves of a head are the two parts of complex numbers."""
    half = x_NXD.shape[-1] // 2
    rotated_NXD = x_NXD * cos_N1D
    rotated_NXD[..., :half].addcmul_(x_NXD[..., half:], sin_N1D[..., :half], value=-1)
    rotated_NXD[..., half:].addcmul_(x_NXD[..., :half], sin_N1D[..., half:])
    return rotated_NXD


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


def _untied_head(head: nn.Module, embedding_VH: Tensor) -> nn.Module:
    """Returns a head whose weight can be moved without moving that of the embedding, which it may share."""
    if type(head) is not nn.Linear or head.weight.data_ptr() != embedding_VH.data_ptr():
        return head
    separate_head = nn.Linear(1, 1, bias=False, device="meta")
    separate_head.weight = nn.Parameter(head.weight.data, requires_grad=False)
    return separate_head
