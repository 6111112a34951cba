"""A frozen base model's layers over the tokens of any number of students, each with their own adapter.

All tokens go through the same matrices together; adapters are each student's own, and so is attention, which whoever
reads brings along: to packed examples in training, to kept keys and values in decoding. The arithmetic is that of the
Llama family (Touvron et al., 2023). It reads the transformers model's own modules and changes nothing in them.

Knows nothing of examples, replies, losses or students.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloning_server.factors import Factors, Pair
from cloning_server.frozen import BlockedMap, Map, are_kept_in_blocks
from cloning_server.kernels import rms_norm, rotate, swiglu
from mesh.lm.architecture import Shape, require_supported

_LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter's factors by module, in the base model's dtype, and what every update is multiplied by."""

    pairs: Mapping[str, Pair]
    scaling: float

    @classmethod
    def of(cls, factors: Factors, dtype: torch.dtype) -> Self:
        """An adapter as it is now; gradients reach the factors' vector."""
        return cls(pairs=factors.pairs(dtype), scaling=factors.scaling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Tokens one after another that are read with one adapter, or with none; so many of them are wanted."""

    tokens: int
    wanted: int
    adapter: Adapter | None


class Attention(Protocol):
    """How the tokens of one pass see each other and what was read before."""

    def __call__(self, layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /) -> Tensor:
        """What each token takes from those that it sees, [tokens, heads * D]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What is read at once.

    Attributes:
        tokens_N: Token ids.
        positions_N: Of each in its conversation, from 0.
        stretches: With which adapter each is read; they cover the tokens in their order.
        attend: What they see.
        wanted_M: Places in N whose last hidden states are wanted.
    """

    tokens_N: Tensor
    positions_N: Tensor
    stretches: Sequence[Stretch]
    attend: Attention
    wanted_M: Tensor


@lru_cache(maxsize=1)
def layers_of(model: PreTrainedModel) -> "Layers":
    """The layers of the base model that this process trains on, made once.

    Raises:
        BaseModelUnavailable: The model is of another architecture.
    """
    return Layers(model)


class Layers:
    """A base model's layers; the model may be used elsewhere in turns.

    Raises:
        BaseModelUnavailable: The model is of another architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_supported(model)
        self.shape = Shape.of(model)
        self.head_VH = model.get_parameter("lm_head.weight")
        self._eps = float(model.config.rms_norm_eps)
        self._embed = model.get_submodule("model.embed_tokens")
        self._rotary = model.get_submodule("model.rotary_emb")
        self._layers = [model.get_submodule(f"model.layers.{index}") for index in range(self.shape.layers)]
        linears = [layer.get_submodule(name) for layer in self._layers for name in _LINEARS]
        make: Callable[[nn.Linear], Map] = BlockedMap if are_kept_in_blocks(linears) else lambda linear: linear
        self._maps = [
            {name: make(cast("nn.Linear", layer.get_submodule(name))) for name in _LINEARS} for layer in self._layers
        ]
        self._norm_H = model.get_parameter("model.norm.weight")
        self.device = model.device
        self.dtype = self._norm_H.dtype

    def read(self, now: Pass) -> Tensor:
        """What the head reads at the wanted places, [M, hidden]."""
        cos_1ND, sin_1ND = self._rotary(self._norm_H, now.positions_N.unsqueeze(0))
        turns = cos_1ND[0].unsqueeze(1), sin_1ND[0].unsqueeze(1)
        x_NH = self._embed(now.tokens_N)
        for index in range(self.shape.layers):
            x_NH = self._layer(index, x_NH, now, turns)
        return rms_norm(x_NH, self._norm_H, self._eps)

    def _layer(self, index: int, x_NH: Tensor, now: Pass, turns: tuple[Tensor, Tensor]) -> Tensor:
        layer = self._layers[index]

        def linear(name: str, x_NI: Tensor) -> Tensor:
            return _adapted(self._maps[index][name](x_NI), x_NI, f"model.layers.{index}.{name}", now)

        normed_NH = rms_norm(x_NH, layer.get_parameter("input_layernorm.weight"), self._eps)
        queries_NXD, keys_NXD, values_NXD = (
            linear(f"self_attn.{name}", normed_NH).unflatten(1, (-1, self.shape.head_width))
            for name in ("q_proj", "k_proj", "v_proj")
        )
        attended_NO = now.attend(index, rotate(queries_NXD, *turns), rotate(keys_NXD, *turns), values_NXD)
        if index == self.shape.layers - 1:
            # No later layer attends to anything: from here on the head's own tokens are enough.
            x_NH, attended_NO, now = x_NH[now.wanted_M], attended_NO[now.wanted_M], _narrowed(now)
            if not len(x_NH):
                return x_NH
        x_NH = linear("self_attn.o_proj", attended_NO).add_(x_NH)
        normed_NH = rms_norm(x_NH, layer.get_parameter("post_attention_layernorm.weight"), self._eps)
        gated_NI = swiglu(linear("mlp.gate_proj", normed_NH), linear("mlp.up_proj", normed_NH))
        return linear("mlp.down_proj", gated_NI).add_(x_NH)


def _narrowed(now: Pass) -> Pass:
    return replace(now, stretches=[replace(one, tokens=one.wanted) for one in now.stretches])


def _adapted(out_NO: Tensor, x_NI: Tensor, name: str, now: Pass) -> Tensor:
    """A frozen map's outputs, plus each student's own update where their adapter has one."""
    pairs = [None if one.adapter is None else one.adapter.pairs.get(name) for one in now.stretches]
    if not any(pairs):
        return out_NO
    sizes = [one.tokens for one in now.stretches]
    updated = []
    for stretch, pair, x_SI, out_SO in zip(now.stretches, pairs, x_NI.split(sizes), out_NO.split(sizes), strict=True):
        if stretch.adapter is None or pair is None:
            updated.append(out_SO)
        else:
            updated.append(torch.addmm(out_SO, x_SI @ pair.a_RI.t() * stretch.adapter.scaling, pair.b_OR.t()))
    return torch.cat(updated) if len(updated) > 1 else updated[0]
