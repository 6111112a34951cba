"""A frozen base model's layers over the tokens of any number of students, each with their own adapter.

All tokens go through the base model's matrices together. Each student's adapter applies to that student's tokens alone,
and the caller supplies the attention: over packed examples in training, over cached keys and values in decoding. The
arithmetic is that of the Llama family (Touvron et al., 2023); the backward pass is written out for the gradients of
adapters alone. The layers read the weights of the transformers model and change nothing in it.

Knows nothing of examples, replies, losses or students.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, TypeAlias, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from cloning_server.compute.adapted_map import AdaptedMap, Adapter
from cloning_server.compute.kernels import AttentionBackward, Backward, rms_norm, rotate, swiglu
from cloning_server.compute.linear import maps_of
from mesh.lm.llama_shape import Shape, require_supported

_LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpan:
    """Consecutive tokens of a pass that share an adapter.

    Attributes:
        tokens: How many tokens there are.
        outputs: For how many of them the pass returns hidden states.
        adapter: Their adapter; None for the base model alone.
    """

    tokens: int
    outputs: int
    adapter: Adapter | None


class Attention(Protocol):
    """Attention among the tokens of one pass, and to keys and values of earlier passes."""

    def __call__(
        self, layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, AttentionBackward | None]:
        """Computes one layer's attention.

        Returns:
            The attended values, [tokens, heads * D], and the backward function; None if there is no backward pass.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PassInput:
    """The input of one pass through the layers.

    Attributes:
        tokens_N: Token ids.
        positions_N: The position of each token in its conversation, from 0.
        spans: The adapters; they cover the tokens in order.
        attend: The attention of every layer.
        outputs_M: Indices in N of the tokens whose last hidden states are returned; None for all.
    """

    tokens_N: Tensor
    positions_N: Tensor
    spans: Sequence[AdapterSpan]
    attend: Attention
    outputs_M: Tensor | None


# Adds the gradients of a layer's keys and values to those of the adapters, and propagates no further.
KeyValueBackward: TypeAlias = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, slots=True)
class LayerBackward:
    """The backward functions of one layer; both add to the gradients of its adapters.

    Attributes:
        full: Maps the gradient of the layer's output to that of its input; only for passes that return all outputs.
        keys_and_values: Takes the gradients of the layer's keys and values, and ends there.
    """

    full: Backward
    keys_and_values: KeyValueBackward


class Layers:
    """A base model's layers. Call them where autograd is off; the model may be used elsewhere in between.

    On a CPU, building them copies the linear weights of a small model (see `linear`): build them once per base model.

    Raises:
        BaseModelUnavailable: The model has an unsupported architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_supported(model, advice="train on another base model")
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

    def run(self, inputs: PassInput) -> Tensor:
        """Returns the normalised last hidden states of the output tokens, [M, hidden]."""
        for x_NH, _ in self._run_layers(inputs):
            last_NH = x_NH
        return rms_norm(last_NH, self._norm_H, self._eps)[0]

    def run_with_backward(self, inputs: PassInput) -> tuple[Tensor, Backward, list[Backward]]:
        """As `run`, for all tokens.

        Returns:
            The hidden states, the backward function of the last norm, and those of the layers, first layer first.
        """
        backwards = []
        for x_NH, layer_backward in self._run_layers(inputs):
            last_NH = x_NH
            backwards.append(layer_backward.full)
        return *rms_norm(last_NH, self._norm_H, self._eps), backwards

    def run_context(self, inputs: PassInput) -> list[KeyValueBackward]:
        """Runs tokens that later passes attend to and that have no outputs; returns a backward function per layer."""
        return [layer_backward.keys_and_values for _, layer_backward in self._run_layers(inputs)]

    def _run_layers(self, inputs: PassInput) -> Iterator[tuple[Tensor, LayerBackward]]:
        """Yields the hidden states after each layer, and the layer's backward functions."""
        x_NH, rotation = self._embed(inputs.tokens_N), self._rotation(inputs)
        for index in range(self.shape.layers):
            x_NH, layer_backward = self._layer(index, x_NH, inputs, rotation)
            yield x_NH, layer_backward

    def _rotation(self, inputs: PassInput) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary positions."""
        cos_1ND, sin_1ND = self._rotary(self._norm_H, inputs.positions_N.unsqueeze(0))
        return cos_1ND[0].unsqueeze(1), sin_1ND[0].unsqueeze(1)

    def _linear(
        self, index: int, name: str, x_NI: Tensor, spans: Sequence[tuple[slice, Adapter]]
    ) -> tuple[Tensor, AdaptedMap]:
        """Applies one linear map of a layer, with the updates of the adapters."""
        module = f"model.layers.{index}.{name}"
        out_NO, back = self._maps[module](x_NI)
        adapted = AdaptedMap(back, x_NI)
        for rows, adapter in spans:
            adapted.add(out_NO, rows, adapter, module)
        return out_NO, adapted

    def _layer(
        self, index: int, x_NH: Tensor, inputs: PassInput, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, LayerBackward]:
        attention_norm_H, mlp_norm_H = self._norms[index]
        normed_NH, norm_back = rms_norm(x_NH, attention_norm_H, self._eps)
        spans = _rows_by_adapter([span.tokens for span in inputs.spans], inputs)
        attended_NO, attention = self._attend(index, normed_NH, inputs, rotation, spans)
        if index == self.shape.layers - 1 and inputs.outputs_M is not None:
            # No later layer attends to anything, so the output tokens are enough from here on.
            x_NH, attended_NO = x_NH[inputs.outputs_M], attended_NO[inputs.outputs_M]
            spans = _rows_by_adapter([span.outputs for span in inputs.spans], inputs)
            if not len(x_NH):
                return x_NH, LayerBackward(_no_outputs, attention.backward_of_keys_and_values)
        out_NH, output_map = self._linear(index, "self_attn.o_proj", attended_NO, spans)
        middle_NH = out_NH.add_(x_NH)
        normed_NH, middle_back = rms_norm(middle_NH, mlp_norm_H, self._eps)
        gate_NI, gate_map = self._linear(index, "mlp.gate_proj", normed_NH, spans)
        up_NI, up_map = self._linear(index, "mlp.up_proj", normed_NH, spans)
        gated_NI, gated_back = swiglu(gate_NI, up_NI)
        down_NH, down_map = self._linear(index, "mlp.down_proj", gated_NI, spans)

        def back(grad_NH: Tensor) -> Tensor:
            to_gate_NI, to_up_NI = gated_back(down_map.back(grad_NH))
            grad_NH = middle_back(gate_map.back(to_gate_NI).add_(up_map.back(to_up_NI))).add_(grad_NH)
            return norm_back(attention.backward(output_map.back(grad_NH))).add_(grad_NH)

        return down_NH.add_(middle_NH), LayerBackward(back, attention.backward_of_keys_and_values)

    def _attend(
        self,
        index: int,
        normed_NH: Tensor,
        inputs: PassInput,
        rotation: tuple[Tensor, Tensor],
        spans: Sequence[tuple[slice, Adapter]],
    ) -> tuple[Tensor, "_AttentionInputs"]:
        (queries_NO, query_map), (keys_NO, key_map), (values_NO, value_map) = (
            self._linear(index, f"self_attn.{name}", normed_NH, spans) for name in ("q_proj", "k_proj", "v_proj")
        )
        queries_NXD, keys_NXD, values_NXD = (
            x_NO.unflatten(1, (-1, self.shape.head_width)) for x_NO in (queries_NO, keys_NO, values_NO)
        )
        attended_NO, attention_back = inputs.attend(
            index, rotate(queries_NXD, *rotation), rotate(keys_NXD, *rotation), values_NXD
        )
        maps = _AttentionInputs(attention_back, queries=query_map, keys=key_map, values=value_map, rotation=rotation)
        return attended_NO, maps


class _AttentionInputs:
    """The maps to queries, keys and values in one layer of one pass, and how gradients go back through them."""

    __slots__ = ("_attention_back", "_cos_N1D", "_key_map", "_query_map", "_sin_N1D", "_value_map")

    def __init__(
        self,
        attention_back: AttentionBackward | None,
        *,
        queries: AdaptedMap,
        keys: AdaptedMap,
        values: AdaptedMap,
        rotation: tuple[Tensor, Tensor],
    ) -> None:
        self._attention_back = attention_back
        self._query_map, self._key_map, self._value_map = queries, keys, values
        self._cos_N1D, self._sin_N1D = rotation

    def backward(self, grad_NO: Tensor) -> Tensor:
        """Maps the gradient of the attended values to that of the layer's normalised input."""
        assert self._attention_back is not None, "a pass with gradients needs an attention that has a backward function"
        to_queries_NXD, to_keys_NXD, to_values_NXD = self._attention_back(grad_NO)
        to_normed_NH = self._query_map.back(self._rotate_back(to_queries_NXD))
        to_normed_NH.add_(self._key_map.back(self._rotate_back(to_keys_NXD)))
        to_normed_NH.add_(self._value_map.back(to_values_NXD.flatten(1)))
        return to_normed_NH

    def backward_of_keys_and_values(self, to_keys_NXD: Tensor, to_values_NXD: Tensor) -> None:
        """Adds to the gradients of the adapters; see `KeyValueBackward`."""
        if self._key_map.is_changed:
            self._key_map.learn(self._rotate_back(to_keys_NXD))
        self._value_map.learn(to_values_NXD.flatten(1))

    def _rotate_back(self, grad_NXD: Tensor) -> Tensor:
        return rotate(grad_NXD, self._cos_N1D, -self._sin_N1D).flatten(1)


def _rows_by_adapter(sizes: Sequence[int], inputs: PassInput) -> list[tuple[slice, Adapter]]:
    """The rows of each adapter, if each span has the size given for it."""
    ends = accumulate(sizes)
    return [
        (slice(end - size, end), span.adapter)
        for span, size, end in zip(inputs.spans, sizes, ends, strict=True)
        if span.adapter is not None and size
    ]


def _no_outputs(_grad: Tensor) -> Tensor:
    raise AssertionError("this pass has no outputs, so it has no gradient")
