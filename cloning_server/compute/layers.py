"""A frozen base model's layers over the tokens of any number of students, each with their own adapter.

All tokens go through the same matrices together; adapters are each student's own, and so is attention, which whoever
reads brings along: to packed examples in training, to kept keys and values in decoding. The arithmetic is that of the
Llama family (Touvron et al., 2023), and so is the way back, written out for the gradients of adapters alone. It reads
the transformers model's own modules and changes nothing in them.

Knows nothing of examples, replies, losses or students.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol, Self, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cloning_server.compute.kernels import Back, ThreeBack, rms_norm, rotate, swiglu
from cloning_server.compute.linear import maps_of
from cloning_server.compute.lora_factors import LoraFactors, Pair
from mesh.lm.llama_shape import Shape, require_supported

_LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter as it is now, by module.

    Attributes:
        pairs: Its factors, in the base model's dtype.
        scaling: What every update is multiplied by.
        gradients: Where those of the factors are added up, if it learns.
    """

    pairs: Mapping[str, Pair]
    scaling: float
    gradients: Mapping[str, Pair] | None = None

    @classmethod
    def of(cls, factors: LoraFactors, dtype: torch.dtype, *, learns: bool = False) -> Self:
        """The adapter of some factors."""
        gradients = factors.gradients() if learns else None
        return cls(pairs=factors.pairs(dtype), scaling=factors.scaling, gradients=gradients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Tokens one after another that are read with one adapter, or with none; so many of them are wanted."""

    tokens: int
    wanted: int
    adapter: Adapter | None


class Attention(Protocol):
    """How the tokens of one pass see each other and what was read before."""

    def __call__(
        self, layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, ThreeBack | None]:
        """What each token takes from those that it sees, [tokens, heads * D].

        Returns:
            That, and the way back to queries, keys and values, or None for a pass that is not gone back through.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What is read at once.

    Attributes:
        tokens_N: Token ids.
        positions_N: Of each in its conversation, from 0.
        stretches: With which adapter each is read; they cover the tokens in their order.
        attend: What they see.
        wanted_M: Places in N whose last hidden states are wanted; None for all.
    """

    tokens_N: Tensor
    positions_N: Tensor
    stretches: Sequence[Stretch]
    attend: Attention
    wanted_M: Tensor | None


# Takes the gradients of a layer's keys and values to its adapters, and no further.
Seen: TypeAlias = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, slots=True)
class Way:
    """The ways back through one layer.

    Attributes:
        back: From the gradient of what the layer gave to that of what it took, by way of its adapters; of a pass of
            which all was wanted.
        seen: From the gradients of its keys and values.
    """

    back: Back
    seen: Seen


@lru_cache(maxsize=1)
def layers_of(model: PreTrainedModel) -> "Layers":
    """The layers of the base model that this process trains on, made once.

    Raises:
        BaseModelUnavailable: The model is of another architecture.
    """
    return Layers(model)


class Layers:
    """A base model's layers; the model may be used elsewhere in turns. To be called where autograd records nothing.

    Raises:
        BaseModelUnavailable: The model is of another architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_supported(model)
        self.shape = Shape.of(model)
        self.head_VH = model.get_parameter("lm_head.weight").detach()
        self._eps = float(model.config.rms_norm_eps)
        self._embed = model.get_submodule("model.embed_tokens")
        self._rotary = model.get_submodule("model.rotary_emb")
        names = [f"model.layers.{index}.{linear}" for index in range(self.shape.layers) for linear in _LINEARS]
        self._maps = dict(
            zip(names, maps_of([cast("nn.Linear", model.get_submodule(name)) for name in names]), strict=True)
        )
        self._norms = [
            tuple(
                model.get_parameter(f"model.layers.{index}.{name}.weight").detach()
                for name in ("input_layernorm", "post_attention_layernorm")
            )
            for index in range(self.shape.layers)
        ]
        self._norm_H = model.get_parameter("model.norm.weight").detach()
        self.device = model.device
        self.dtype = self._norm_H.dtype

    def read(self, now: Pass) -> Tensor:
        """What the head reads at the wanted places, [M, hidden]."""
        for x_NH, _ in self._through(now):
            last_NH = x_NH
        return rms_norm(last_NH, self._norm_H, self._eps)[0]

    def read_to_learn(self, now: Pass) -> tuple[Tensor, Back, list[Back]]:
        """The same of all places; and the ways back: from the head, and through each layer, with what they need."""
        backs = []
        for x_NH, way in self._through(now):
            last_NH = x_NH
            backs.append(way.back)
        return *rms_norm(last_NH, self._norm_H, self._eps), backs

    def read_to_be_seen(self, now: Pass) -> list[Seen]:
        """Reads what others will see, and nothing is wanted of for itself; the ways back from that, by layer."""
        return [way.seen for _, way in self._through(now)]

    def _through(self, now: Pass) -> Iterator[tuple[Tensor, Way]]:
        """After each layer the hidden states, and the ways back through it."""
        x_NH, turns = self._embed(now.tokens_N), self._turns(now)
        for index in range(self.shape.layers):
            x_NH, way = self._layer(index, x_NH, now, turns)
            yield x_NH, way

    def _turns(self, now: Pass) -> tuple[Tensor, Tensor]:
        cos_1ND, sin_1ND = self._rotary(self._norm_H, now.positions_N.unsqueeze(0))
        return cos_1ND[0].unsqueeze(1), sin_1ND[0].unsqueeze(1)

    def _layer(self, index: int, x_NH: Tensor, now: Pass, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Way]:
        cos_N1D, sin_N1D = turns
        first_norm_H, second_norm_H = self._norms[index]
        spans = _spans([one.tokens for one in now.stretches], now)

        def linear(name: str, x_NI: Tensor) -> tuple[Tensor, _Adapted]:
            full = f"model.layers.{index}.{name}"
            out_NO, back = self._maps[full](x_NI)
            adapted = _Adapted(back, x_NI)
            for rows, adapter in spans:
                adapted.add(out_NO, rows, adapter, full)
            return out_NO, adapted

        normed_NH, norm_back = rms_norm(x_NH, first_norm_H, self._eps)
        (queries_NO, of_queries), (keys_NO, of_keys), (values_NO, of_values) = (
            linear(f"self_attn.{name}", normed_NH) for name in ("q_proj", "k_proj", "v_proj")
        )
        queries_NXD, keys_NXD, values_NXD = (
            one.unflatten(1, (-1, self.shape.head_width)) for one in (queries_NO, keys_NO, values_NO)
        )
        attended_NO, attention_back = now.attend(
            index, rotate(queries_NXD, *turns), rotate(keys_NXD, *turns), values_NXD
        )

        def seen(to_keys_NXD: Tensor, to_values_NXD: Tensor) -> None:
            if of_keys.is_changed:
                of_keys.learn(rotate(to_keys_NXD, cos_N1D, -sin_N1D).flatten(1))
            of_values.learn(to_values_NXD.flatten(1))

        if index == self.shape.layers - 1 and now.wanted_M is not None:
            # No later layer attends to anything: from here on the head's own tokens are enough.
            x_NH, attended_NO = x_NH[now.wanted_M], attended_NO[now.wanted_M]
            spans = _spans([one.wanted for one in now.stretches], now)
            if not len(x_NH):
                return x_NH, Way(_no_way, seen)
        out_NH, of_out = linear("self_attn.o_proj", attended_NO)
        middle_NH = out_NH.add_(x_NH)
        normed_NH, middle_back = rms_norm(middle_NH, second_norm_H, self._eps)
        (gate_NI, of_gate), (up_NI, of_up) = linear("mlp.gate_proj", normed_NH), linear("mlp.up_proj", normed_NH)
        gated_NI, gated_back = swiglu(gate_NI, up_NI)
        down_NH, of_down = linear("mlp.down_proj", gated_NI)

        def back(grad_NH: Tensor) -> Tensor:
            assert attention_back is not None, "whoever learns brings an attention that has a way back"
            to_gate_NI, to_up_NI = gated_back(of_down.back(grad_NH))
            grad_NH = middle_back(of_gate.back(to_gate_NI).add_(of_up.back(to_up_NI))).add_(grad_NH)
            to_queries_NXD, to_keys_NXD, to_values_NXD = attention_back(of_out.back(grad_NH))
            to_normed_NH = of_queries.back(rotate(to_queries_NXD, cos_N1D, -sin_N1D).flatten(1))
            to_normed_NH.add_(of_keys.back(rotate(to_keys_NXD, cos_N1D, -sin_N1D).flatten(1)))
            to_normed_NH.add_(of_values.back(to_values_NXD.flatten(1)))
            return norm_back(to_normed_NH).add_(grad_NH)

        return down_NH.add_(middle_NH), Way(back, seen)


class _Adapted:
    """One frozen map as it was applied, with the updates of the adapters that change it."""

    __slots__ = ("_back", "_updates", "_x_NI")

    def __init__(self, back: Back, x_NI: Tensor) -> None:
        self._back = back
        self._x_NI = x_NI
        self._updates: list[tuple[slice, Pair, Pair | None, float, Tensor]] = []

    @property
    def is_changed(self) -> bool:
        """Whether any adapter changes the map."""
        return bool(self._updates)

    def add(self, out_NO: Tensor, rows: slice, adapter: Adapter, name: str) -> None:
        """Adds an adapter's update to the map's outputs, where it has one."""
        pair = adapter.pairs.get(name)
        if pair is None:
            return
        narrow_SR = self._x_NI[rows] @ pair.a_RI.t()
        out_NO[rows].addmm_(narrow_SR, pair.b_OR.t(), alpha=adapter.scaling)
        gradients = None if adapter.gradients is None else adapter.gradients[name]
        self._updates.append((rows, pair, gradients, adapter.scaling, narrow_SR))

    def learn(self, grad_NO: Tensor) -> list[tuple[slice, Pair, Tensor]]:
        """Adds to the gradients of the factors; returns what goes on to the inputs, rank by rank."""
        going = []
        for rows, pair, gradients, scaling, narrow_SR in self._updates:
            grad_SO = grad_NO[rows]
            to_narrow_SR = (grad_SO @ pair.b_OR).mul_(scaling)
            if gradients is not None:
                gradients.b_OR.add_(grad_SO.t() @ narrow_SR, alpha=scaling)
                gradients.a_RI.add_(to_narrow_SR.t() @ self._x_NI[rows])
            going.append((rows, pair, to_narrow_SR))
        return going

    def back(self, grad_NO: Tensor) -> Tensor:
        """The gradient of the inputs; adds to those of the factors."""
        grad_NI = self._back(grad_NO)
        for rows, pair, to_narrow_SR in self.learn(grad_NO):
            grad_NI[rows].addmm_(to_narrow_SR, pair.a_RI)
        return grad_NI


def _spans(sizes: Sequence[int], now: Pass) -> list[tuple[slice, Adapter]]:
    """Which rows are read with which adapter."""
    ends = accumulate(sizes)
    return [
        (slice(end - size, end), stretch.adapter)
        for stretch, size, end in zip(now.stretches, sizes, ends, strict=True)
        if stretch.adapter is not None and size
    ]


def _no_way(_grad: Tensor) -> Tensor:
    raise AssertionError("nothing of this pass was wanted")
