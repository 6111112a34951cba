from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from mesh.errors import AdapterCorrupt, AdapterIncompatible
from mesh.lm.attached import SLOT, adapter_state, attach, load_into, switched_off
from mesh.lm.base import BaseModel, Quantization, load_base
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.lora import LoraSpec, from_safetensors, to_peft_config, to_safetensors

SPEC = LoraSpec()
TOKENS_BT = torch.tensor([[1, 520, 198, 4093, 47, 260, 2]])


def logits_of(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        logits_BTV: Tensor = model(TOKENS_BT).logits
    return logits_BTV


def student_state(spec: LoraSpec, like: PeftModel, seed: int) -> dict[str, Tensor]:
    """Weights such as training leaves: none of the factors zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in adapter_state(like).items():
        shape = list(tensor.shape)
        shape[0 if "lora_A" in name else 1] = spec.rank
        state[name] = torch.randn(shape, generator=generator) * 0.05
    return state


@pytest.fixture(scope="module")
def slot(base: BaseModel, cache_dir: Path) -> PeftModel:
    own = load_base(base.name, cache_dir=cache_dir, device="cpu", dtype="float32")
    return attach(own.model, SPEC, seed=7)


def test_a_fresh_adapter_changes_no_answer(base: BaseModel, cache_dir: Path) -> None:
    own = load_base(base.name, cache_dir=cache_dir, device="cpu", dtype="float32")
    assert torch.equal(logits_of(attach(own.model, SPEC, seed=7)), logits_of(base.model))


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_first_weights_are_fp32_and_of_the_seed_alone_on_any_base(cache_dir: Path, quantization: Quantization) -> None:
    other = load_base(
        DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="bfloat16", quantization=quantization
    )
    random_state = torch.random.get_rng_state()
    model = attach(other.model, SPEC, seed=11)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    trainable = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert len(trainable) == 2 * 2 * 30
    assert all("lora_" in name and one.dtype == torch.float32 for name, one in trainable.items())
    again = attach(load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu").model, SPEC, seed=11)
    first, second = adapter_state(model), adapter_state(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(first[name].any() for name in first if "lora_A" in name)
    assert not any(first[name].any() for name in first if "lora_B" in name)
    before = logits_of(model)
    load_into(model, student_state(SPEC, model, seed=1), scaling=2.0)
    assert not torch.equal(logits_of(model), before)
    with switched_off(model):
        assert torch.equal(logits_of(model), before)


def test_switched_off_it_is_the_base_model_bit_for_bit_and_on_again_the_student(
    base: BaseModel, slot: PeftModel
) -> None:
    load_into(slot, student_state(SPEC, slot, seed=1), scaling=2.0)
    gradients = [one.requires_grad for one in slot.parameters()]
    student = logits_of(slot)
    with switched_off(slot):
        assert torch.equal(logits_of(slot), logits_of(base.model))
    assert torch.equal(logits_of(slot), student)
    assert not torch.equal(student, logits_of(base.model))
    assert [one.requires_grad for one in slot.parameters()] == gradients


def test_what_is_saved_is_what_is_loaded_and_fits_in_four_megabytes(slot: PeftModel) -> None:
    state = student_state(SPEC, slot, seed=2)
    content = to_safetensors(state)
    assert len(content) <= 4_000_000
    assert content == to_safetensors(dict(reversed(state.items())))
    load_into(slot, from_safetensors(content), scaling=SPEC.scaling)
    held = adapter_state(slot)
    assert held.keys() == state.keys()
    assert all(torch.equal(held[name], state[name]) for name in state)


def test_peft_reads_the_file_and_answers_the_same(slot: PeftModel, cache_dir: Path, tmp_path: Path) -> None:
    state = student_state(SPEC, slot, seed=3)
    (tmp_path / "adapter_model.safetensors").write_bytes(to_safetensors(state))
    (tmp_path / "adapter_config.json").write_bytes(to_peft_config(SPEC, base_model=DEFAULT_BASE_MODEL))
    own = load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="float32")
    loaded = PeftModel.from_pretrained(own.model, tmp_path)
    load_into(slot, state, scaling=SPEC.scaling)
    assert torch.equal(logits_of(loaded), logits_of(slot))


def test_a_lower_rank_fills_the_slot_up_with_zeros(slot: PeftModel, cache_dir: Path) -> None:
    small = LoraSpec(rank=4, alpha=8)
    own = attach(load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="float32").model, small, seed=1)
    state = student_state(small, own, seed=4)
    load_into(own, state, scaling=small.scaling)
    load_into(slot, student_state(SPEC, slot, seed=5), scaling=9.0)
    load_into(slot, state, scaling=small.scaling)
    torch.testing.assert_close(logits_of(slot), logits_of(own), atol=1e-3, rtol=1e-4)


def test_loading_adapters_adds_nothing_to_the_model(slot: PeftModel) -> None:
    parts = [name for name, _ in slot.named_modules()]
    addresses = [one.data_ptr() for one in slot.parameters()]
    for seed in range(3):
        load_into(slot, student_state(SPEC, slot, seed=seed), scaling=2.0)
    assert [name for name, _ in slot.named_modules()] == parts
    assert [one.data_ptr() for one in slot.parameters()] == addresses
    assert list(slot.peft_config) == [SLOT]


def test_an_adapter_that_does_not_fit_writes_nothing(slot: PeftModel) -> None:
    load_into(slot, student_state(SPEC, slot, seed=6), scaling=2.0)
    before = logits_of(slot)
    fitting = student_state(SPEC, slot, seed=7)
    last = list(fitting)[-1]
    misfits = [
        student_state(LoraSpec(rank=32), slot, seed=8),
        {name: tensor for name, tensor in fitting.items() if "v_proj" not in name},
        {**fitting, last: fitting[last][:-1]},
        {**fitting, last: fitting[last].flatten()},
        {**fitting, last: fitting[last][:, :4]},
    ]
    for state in misfits:
        with pytest.raises(AdapterIncompatible):
            load_into(slot, state, scaling=2.0)
    assert torch.equal(logits_of(slot), before)


def test_a_base_model_without_the_targets_is_refused(cache_dir: Path) -> None:
    own = load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu")
    with pytest.raises(AdapterIncompatible, match="no_such_proj"):
        attach(own.model, LoraSpec(target_modules=("no_such_proj",)), seed=1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        to_safetensors({"a.lora_A.weight": torch.tensor([[1.0, float("nan")]])}),
        to_safetensors({"a.lora_A.weight": torch.tensor([[float("inf")]])}),
        to_safetensors({"a.lora_A.weight": torch.tensor([[1]])}),
    ],
)
def test_bytes_that_are_no_sound_adapter_are_refused(content: bytes) -> None:
    with pytest.raises(AdapterCorrupt):
        from_safetensors(content)
