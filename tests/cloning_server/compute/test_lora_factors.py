"""An adapter under training: its first weights, the adapters that it loads, and that PEFT reads its file."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.packing import pack
from cloning_server.learning.passes import Passes
from mesh.errors import AdapterIncompatible
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.chat import Example
from mesh.lm.lora import LoraSpec, from_safetensors, to_safetensors
from mesh.main_brain.base import BaseModel, Quantization, load_base
from testing.models.peft_config import to_peft_config

SPEC = LoraSpec()
TOKENS_BT = torch.tensor([[1, 520, 198, 4093, 47, 260, 2]])


def logits_of(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        logits_BTV: Tensor = model(TOKENS_BT).logits
    return logits_BTV


def adapted_logits_of(passes: Passes, factors: LoraFactors | None) -> Tensor:
    """Logits as training computes them, after each token but the last."""
    packed = pack([Example(tokens=tuple(TOKENS_BT[0].tolist()), reply_start=1)], device=passes.device)
    with torch.inference_mode():
        return torch.cat([logits_BV for logits_BV, _ in passes.logits(packed, factors)])


def student_state(base: BaseModel, spec: LoraSpec = SPEC, *, seed: int) -> dict[str, Tensor]:
    """Weights such as training leaves: none of the factors zero."""
    generator = torch.Generator().manual_seed(seed)
    state = LoraFactors(base.model, spec, seed=seed).state()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.05 for name, tensor in state.items()}


def test_a_new_adapter_changes_no_answer_and_a_trained_one_does(base: BaseModel, passes: Passes) -> None:
    before = adapted_logits_of(passes, None)
    assert torch.equal(adapted_logits_of(passes, LoraFactors(base.model, SPEC, seed=7)), before)
    learned = LoraFactors.of(base.model, student_state(base, seed=1), scaling=2.0)
    assert not torch.equal(adapted_logits_of(passes, learned), before)
    assert torch.equal(adapted_logits_of(passes, None), before)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_first_weights_are_fp32_and_of_the_seed_alone_on_any_base(
    base: BaseModel, cache_dir: Path, quantization: Quantization
) -> None:
    other = load_base(
        DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="bfloat16", quantization=quantization
    )
    random_state = torch.random.get_rng_state()
    first, second = LoraFactors(other.model, SPEC, seed=11).state(), LoraFactors(base.model, SPEC, seed=11).state()
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert first.keys() == second.keys()
    assert len(first) == 2 * 2 * 30
    for name, tensor in first.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, second[name])
        assert bool(tensor.any()) == ("lora_A" in name)


def test_peft_reads_the_file_and_answers_the_same(cache_dir: Path, tmp_path: Path) -> None:
    own = load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="float32")
    state = student_state(own, seed=3)
    (tmp_path / "adapter_model.safetensors").write_bytes(to_safetensors(state))
    (tmp_path / "adapter_config.json").write_bytes(to_peft_config(SPEC, base_model=DEFAULT_BASE_MODEL))
    ours = adapted_logits_of(Passes(own.model), LoraFactors.of(own.model, state, scaling=SPEC.scaling))
    loaded = PeftModel.from_pretrained(own.model, tmp_path)
    torch.testing.assert_close(logits_of(loaded)[0, :-1], ours, atol=1e-3, rtol=1e-4)


def test_a_loaded_adapter_has_the_same_updates_at_another_scaling_and_a_higher_rank(base: BaseModel) -> None:
    state = student_state(base, LoraSpec(rank=4, alpha=8), seed=4)
    wide = LoraFactors(base.model, SPEC, seed=5)
    wide.load(state, scaling=3.0)
    with torch.no_grad():
        ours, theirs = (
            [factors.scaling * pair.b_OR @ pair.a_RI for pair in factors.pairs(torch.float32).values()]
            for factors in (wide, LoraFactors.of(base.model, state, scaling=3.0))
        )
    torch.testing.assert_close(ours, theirs)


def test_what_was_trained_fits_in_four_megabytes_and_comes_back_as_it_was(base: BaseModel) -> None:
    state = student_state(base, seed=2)
    content = to_safetensors(state)
    assert len(content) <= 4_000_000
    again = LoraFactors.of(base.model, from_safetensors(content), scaling=2.0).state()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_an_adapter_that_does_not_fit_writes_nothing(base: BaseModel) -> None:
    factors = LoraFactors(base.model, SPEC, seed=6)
    before = factors.vector.detach().clone()
    fitting = student_state(base, seed=7)
    last = list(fitting)[-1]
    misfits = [
        student_state(base, LoraSpec(rank=32), seed=8),
        {name: tensor for name, tensor in fitting.items() if "v_proj" not in name},
        {**fitting, last: fitting[last][:-1]},
        {**fitting, last: fitting[last].flatten()},
    ]
    for state in misfits:
        with pytest.raises(AdapterIncompatible):
            factors.load(state, scaling=2.0)
    assert torch.equal(factors.vector, before)


def test_a_base_model_without_the_targets_is_refused(base: BaseModel) -> None:
    with pytest.raises(AdapterIncompatible, match="no_such_proj"):
        LoraFactors(base.model, LoraSpec(target_modules=("no_such_proj",)), seed=1)
