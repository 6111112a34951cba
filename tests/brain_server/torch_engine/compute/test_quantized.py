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
from mesh.lm.base import Quantization, load_base
from mesh.lm.lora import LoraSpec
from testing.models.mixed_steps import logits_of_rows

SPEC = LoraSpec(rank=8, alpha=16, target_modules=("k_proj", "up_proj", "q_proj", "v_proj", "down_proj"))
CONFIG = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
NAMES = ("ada", "ben", "eve")
SLOTS = (1, 0, None, 2)
NEW_TOKENS = 6
# bitsandbytes' products on a CPU are rounded within: by LLM.int8() the input to 1/127 of each row's largest, and NF4's
# too are off by a hundredth of what fp32 makes of the same weights. Where the order of sums moves a number across the
# border of two steps, it moves by a whole one. In 8 bits, transformers with and without its cache differ by 0.1.
ATOL: dict[Quantization, float] = {"4bit": 0.1, "8bit": 0.3}


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_rows_of_many_adapters_decode_as_alone_on_the_same_quantised_weights(
    small_llama: Path, quantization: Quantization
) -> None:
    base, again = (
        load_base(
            str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32", quantization=quantization
        )
        for _ in range(2)
    )
    peft = get_peft_model(base.model, CONFIG, adapter_name=NAMES[0])
    for name in NAMES[1:]:
        peft.add_adapter(name, CONFIG)
    states = [randomised(peft, name) for name in NAMES]
    decoder = Decoder(again.model, rows=len(SLOTS), context_tokens=64)
    tables = SlotTables(decoder.shape, spec=SPEC, slots=3, dtype=torch.float32, device=torch.device("cpu"))
    for slot, state in enumerate(states):
        tables.put(slot, tables.pack(state, scaling=SPEC.scaling))

    prompts = torch.randint(100, 40_000, (len(SLOTS), 17), generator=torch.Generator().manual_seed(3))
    whole = [decoded_alone(peft.eval(), prompt, slot) for prompt, slot in zip(prompts, SLOTS, strict=True)]
    sequences = [tokens.tolist() for tokens, _ in whole]
    logits = logits_of_rows(decoder, sequences, seed=2, tables=tables, slots=SLOTS)
    for mine, (tokens, theirs), used in zip(logits, whole, SLOTS, strict=True):
        written = slice(len(prompts[0]) - 1, -1)
        torch.testing.assert_close(mine[written], theirs, atol=ATOL[quantization], rtol=0)
        # What is picked is the same wherever the two likeliest are further apart than that.
        likeliest = theirs.topk(2).values
        clear = (likeliest[:, 0] - likeliest[:, 1]) > 2 * ATOL[quantization]
        assert torch.equal(mine[written].argmax(-1)[clear], tokens[len(prompts[0]) :][clear])
        # The adapters are heard far above the tolerance.
        if used is not None:
            _, plain = decoded_alone(peft, prompts[0], None)
            assert (theirs - plain).abs().mean() > 2 * ATOL[quantization]


def randomised(peft: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Gives an adapter random numbers, and returns them as PEFT would save them."""
    generator = torch.Generator().manual_seed(NAMES.index(adapter))
    for name, weight in peft.named_parameters():
        if f".{adapter}.weight" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    state: dict[str, Tensor] = get_peft_model_state_dict(peft, adapter_name=adapter)
    return {name: weight.detach().clone() for name, weight in state.items()}


def decoded_alone(peft: PeftModel, prompt: Tensor, slot: int | None) -> tuple[Tensor, Tensor]:
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
