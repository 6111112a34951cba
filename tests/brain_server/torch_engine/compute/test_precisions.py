"""Serving in bf16 and in fp32, with weights in blocks and without: small models, many adapters, against fp32 PEFT."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel

from brain_server.torch_engine.compute import projections
from brain_server.torch_engine.compute.decoder import Decoder
from brain_server.torch_engine.compute.slot_tables import SlotTables
from mesh.lm.llama_shape import GROUPS
from mesh.lm.lora import LoraSpec
from testing.models.mixed_steps import logits_of_rows
from testing.models.small_models import VOCABULARY, small_model

SPEC = LoraSpec(rank=8, alpha=16, target_modules=tuple(module for group in GROUPS.values() for module in group))
SLOTS = (1, 0, None, 1)
# For logits of about 1. In fp32, two orders of summation differ by this; in bf16, each operation rounds to 8 bits.
ATOL = {torch.float32: 1e-4, torch.bfloat16: 0.15}
LAYOUTS = ("the machine's layout", "plain matrices")


def random_llama() -> PreTrainedModel:
    """A small model whose weights are bf16 numbers, so that both precisions have the same."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attention_bias=True,
    )  # fmt: skip
    model = small_model(config)
    for weight in model.parameters():
        weight.data = weight.bfloat16().float()
    return model


def with_adapter(model: PreTrainedModel, *, seed: int) -> PeftModel:
    """A copy of the model with a random adapter."""
    config = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
    peft = get_peft_model(copy.deepcopy(model), config)
    assert isinstance(peft, PeftModel)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            values = torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5 / 2
            weight.data.copy_(values.bfloat16())
    return peft.eval()


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_decodes_with_its_own_adapter(
    dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if layout == "plain matrices":
        monkeypatch.setattr(projections, "can_be_blocked", lambda _: False)
    model = random_llama()
    peft_models = [with_adapter(model, seed=seed) for seed in range(2)]
    decoder = Decoder(nn.Module.to(copy.deepcopy(model), dtype), rows=len(SLOTS), context_tokens=32)
    tables = SlotTables(decoder.shape, spec=SPEC, slots=2, dtype=dtype, device=torch.device("cpu"))
    for slot, peft in enumerate(peft_models):
        state: dict[str, Tensor] = get_peft_model_state_dict(peft)
        tables.put(slot, tables.pack(state, scaling=SPEC.scaling))
    sequences = torch.randint(VOCABULARY, (len(SLOTS), 25), generator=torch.Generator().manual_seed(5)).tolist()
    with torch.inference_mode():
        expected_rows = [
            (model if slot is None else peft_models[slot])(torch.tensor([tokens])).logits[0]
            for slot, tokens in zip(SLOTS, sequences, strict=True)
        ]
        base_logits = model(torch.tensor(sequences)).logits
    logits = logits_of_rows(decoder, sequences, seed=2, tables=tables, slots=SLOTS)
    for row, row_slot in enumerate(SLOTS):
        torch.testing.assert_close(logits[row], expected_rows[row], atol=ATOL[dtype], rtol=0)
        # An adapter's effect is far above the tolerance.
        assert row_slot is None or (expected_rows[row] - base_logits[row]).abs().mean() > 3 * ATOL[dtype]
