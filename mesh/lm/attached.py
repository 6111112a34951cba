"""An adapter on a model that trains: attached to it, taken out as tensors, and overwritten in place.

Serving has slots of its own, for many adapters at once; this is one, on PEFT.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from mesh.errors import AdapterIncompatible
from mesh.lm.lora import LoraSpec

SLOT = "default"


def attach(base: PreTrainedModel, spec: LoraSpec, *, seed: int) -> PeftModel:
    """Puts an adapter's slot into a base model, in place; a fresh adapter changes no answer, as its B is zero.

    The adapter is fp32 on every base, bf16 or quantised: steps of training are below bf16's resolution. Its first
    weights are of the seed alone (A Kaiming-uniform as in the paper's code, B zero), on any device, and the global
    random state is as it was. Only the adapter requires gradients.

    Raises:
        AdapterIncompatible: If the base model lacks the target modules.
    """
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.target_modules), lora_dropout=0.0, bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        try:
            model = get_peft_model(base, config, adapter_name=SLOT, autocast_adapter_dtype=True)
        except ValueError as error:
            raise AdapterIncompatible(f"the base model has not all of {', '.join(spec.target_modules)}") from error
    generator = torch.Generator().manual_seed(seed)
    for name, weight in _slot_weights(model).items():
        if name.endswith("lora_A.weight"):
            fresh = torch.nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5), generator=generator)
            weight.data.copy_(fresh)
        else:
            weight.data.zero_()
    return model


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The slot's weights by PEFT's names, copied to the CPU in fp32.

    Shapes: `….lora_A.weight` [rank, in], `….lora_B.weight` [out, rank].
    """
    return {
        name: weight.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
        for name, weight in _slot_weights(model).items()
    }


def load_into(model: PeftModel, state: Mapping[str, Tensor], *, scaling: float) -> None:
    """Overwrites the slot with an adapter, in place: nothing is added, so that the thousandth costs what the first did.

    An adapter of a lower rank than the slot's fills it up with zeros, which add nothing to any answer. Nothing is
    written unless all fits.

    Args:
        model: Made by `attach`.
        state: Weights by PEFT's names, on any device.
        scaling: The adapter's own alpha / rank, times whatever strength was chosen for it.

    Raises:
        AdapterIncompatible: If it has other targets, other widths, more than one rank, or a higher one than the slot.
    """
    slot = _slot_weights(model)
    rank = _fitting_rank(slot, state)
    for name, weight in slot.items():
        axis = _rank_axis(name)
        weight.data.narrow(axis, 0, rank).copy_(state[name])
        weight.data.narrow(axis, rank, weight.shape[axis] - rank).zero_()
    for layer in _lora_layers(model).values():
        layer.scaling[SLOT] = scaling


@contextmanager
def switched_off(model: PeftModel) -> Iterator[None]:
    """Within it the model is the base model, bit for bit: the adapter's part is not computed at all.

    Unlike PEFT's own switch it leaves alone which weights require gradients. Not for a model that is running elsewhere.
    """
    layers = list(_lora_layers(model).values())
    # PEFT's public switch also turns the gradients of the slot on when it leaves; a serving slot must have none.
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was_off in zip(layers, before, strict=True):
            layer._disable_adapters = was_off


def _lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _slot_weights(model: PeftModel) -> dict[str, Tensor]:
    """The slot's own parameters by the names that PEFT's files have."""
    return {
        f"{name}.{factor}.weight": getattr(layer, factor)[SLOT].weight
        for name, layer in _lora_layers(model).items()
        for factor in ("lora_A", "lora_B")
    }


def _fitting_rank(slot: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int:
    if slot.keys() != state.keys():
        raise AdapterIncompatible("the adapter has other target modules than the slot")
    ranks = set()
    for name, weight in slot.items():
        given, room, axis = state[name].shape, weight.shape, _rank_axis(name)
        if len(given) != 2 or given[1 - axis] != room[1 - axis] or given[axis] > room[axis]:
            raise AdapterIncompatible(f"the adapter's {name} does not fit: {tuple(given)} into {tuple(room)}")
        ranks.add(given[axis])
    if len(ranks) != 1:
        raise AdapterIncompatible(f"the adapter has parts of different ranks: {sorted(ranks)}")
    return ranks.pop()


def _rank_axis(name: str) -> int:
    return 0 if name.endswith("lora_A.weight") else 1
