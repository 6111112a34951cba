"""Base models in 4 and 8 bits: many adapters in one batch, against transformers and PEFT on the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor

from brain_server.torch_engine.compute.decoder import Decoder
from brain_server.torch_engine.compute.slot_tables import SlotTables
from mesh.lm.lora import LoraSpec
from mesh.main_brain.base import Quantization, load_base
from testing.models.mixed_steps import logits_of_rows

SPEC = LoraSpec(rank=8, alpha=16, target_modules=("k_proj", "up_proj", "q_proj", "v_proj", "down_proj"))
CONFIG = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
NAMES = ("ada", "ben", "eve")
SLOTS = (1, 0, None, 2)
NEW_TOKENS = 6
# On a CPU, bitsandbytes rounds inside its products. LLM.int8() rounds the input to 1/127 of each row's largest number,
# and NF4's products differ by a hundredth from those of fp32 with the same weights. A number that the order of sums
# moves across a rounding border moves by a whole step. In 8 bits, transformers itself differs by 0.1 with its cache.
ATOL: dict[Quantization, float] = {"4bit": 0.1, "8bit": 0.3}


@pytest.fixture(params=["the machine's kernels", "any machine's kernels"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with AVX512-BF16 bitsandbytes multiplies by 4-bit weights with another kernel than elsewhere."""
    if request.param == "any machine's kernels":
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_rows_of_many_adapters_decode_as_alone_on_the_same_quantised_weights(
    small_llama: Path, quantization: Quantization
) -> None:
    peft_base, decoder_base = (
        load_base(
            str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32", quantization=quantization
        )
        for _ in range(2)
    )
    peft = get_peft_model(peft_base.model, CONFIG, adapter_name=NAMES[0])
    for name in NAMES[1:]:
        peft.add_adapter(name, CONFIG)
    states = [randomise(peft, name) for name in NAMES]
    decoder = Decoder(decoder_base.model, rows=len(SLOTS), context_tokens=64)
    tables = SlotTables(decoder.shape, spec=SPEC, slots=3, dtype=torch.float32, device=torch.device("cpu"))
    for slot, state in enumerate(states):
        tables.put(slot, tables.pack(state, scaling=SPEC.scaling))

    prompts = torch.randint(100, 40_000, (len(SLOTS), 17), generator=torch.Generator().manual_seed(3))
    isolated_runs = [decode_alone(peft.eval(), prompt, slot) for prompt, slot in zip(prompts, SLOTS, strict=True)]
    sequences = [tokens.tolist() for tokens, _ in isolated_runs]
    logits = logits_of_rows(decoder, sequences, seed=2, tables=tables, slots=SLOTS)
    for row_logits, (tokens, expected_logits), row_slot in zip(logits, isolated_runs, SLOTS, strict=True):
        reply = slice(len(prompts[0]) - 1, -1)
        torch.testing.assert_close(row_logits[reply], expected_logits, atol=ATOL[quantization], rtol=0)
        # The same token is picked wherever the two likeliest are further apart than the tolerance.
        top_two = expected_logits.topk(2).values
        is_clear = (top_two[:, 0] - top_two[:, 1]) > 2 * ATOL[quantization]
        assert torch.equal(row_logits[reply].argmax(-1)[is_clear], tokens[len(prompts[0]) :][is_clear])
        # The adapters change the logits far beyond the tolerance.
        if row_slot is not None:
            _, base_logits = decode_alone(peft, prompts[0], None)
            assert (expected_logits - base_logits).abs().mean() > 2 * ATOL[quantization]


def randomise(peft: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Gives an adapter random numbers, and returns them as PEFT would save them."""
    generator = torch.Generator().manual_seed(NAMES.index(adapter))
    for name, weight in peft.named_parameters():
        if f".{adapter}.weight" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    state: dict[str, Tensor] = get_peft_model_state_dict(peft, adapter_name=adapter)
    return {name: weight.detach().clone() for name, weight in state.items()}


def decode_alone(peft: PeftModel, prompt: Tensor, slot: int | None) -> tuple[Tensor, Tensor]:
    """The prompt with its greedy reply, and the logits from which its tokens were picked, by transformers."""
    generate: Callable[..., Any] = peft.generate

    def decode() -> tuple[Tensor, Tensor]:
        output = generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return output.sequences[0], torch.cat(output.logits).float()

    if slot is None:
        with peft.disable_adapter():
            return decode()
    peft.set_adapter(NAMES[slot])
    return decode()
