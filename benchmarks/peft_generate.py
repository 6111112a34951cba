"""The baseline of serving that runs in this process: transformers' `generate` with PEFT adapters.

It runs with its fastest options: adapters in the base model's dtype, so that no product converts, all of them loaded
in advance, sdpa attention, the key-value cache on, and gradients off.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor

from benchmarks import load
from mesh.lm.chat import encode_prompt
from mesh.main_brain.base import BaseModel
from testing.models.random_adapters import SPEC


class PeftGenerate:
    """A base model with adapters that answers one request after another.

    Args:
        base: The base model; PEFT changes it in place.
        adapters: Number of adapters.
        state_of: Returns the weights of the adapter with a number.
    """

    def __init__(self, base: BaseModel, adapters: int, *, state_of: Callable[[int], Mapping[str, Tensor]]) -> None:
        self._base = base
        config = LoraConfig(
            r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules), task_type="CAUSAL_LM"
        )
        model = get_peft_model(base.model, config, adapter_name=_adapter_name(0), autocast_adapter_dtype=False)
        assert isinstance(model, PeftModel)
        self._model = model
        for number in range(adapters):
            if number:
                model.add_adapter(_adapter_name(number), config, autocast_adapter_dtype=False)
            set_peft_model_state_dict(model, dict(state_of(number)), adapter_name=_adapter_name(number))
        model.eval()

    def switch(self, number: int) -> float:
        """Activates an adapter; returns how many milliseconds it took."""
        started_at = time.perf_counter()
        self._model.set_adapter(_adapter_name(number), inference_mode=True)
        return (time.perf_counter() - started_at) * 1e3

    @torch.inference_mode()
    def reply(self, number: int, *, tokens: int) -> int:
        """Decodes greedily to the full length, ignoring end tokens; returns the number of new tokens."""
        prompt = encode_prompt(self._base.tokenizer, load.prompt(number))
        prompt_BT = torch.tensor([prompt], device=self._base.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out_BT = self._model.generate(  # type: ignore[no-untyped-call] # PEFT types few of its methods
                input_ids=prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=self._base.tokenizer.pad_token_id,
            )
        return int(out_BT.shape[1]) - len(prompt)

    def rate(self, numbers: Sequence[int], *, tokens: int) -> float:
        """Returns tokens per second over one request per number, each with its own adapter, switching included."""
        started_at = time.perf_counter()
        token_count = 0
        for number in numbers:
            self.switch(number)
            token_count += self.reply(number, tokens=tokens)
        return token_count / (time.perf_counter() - started_at)


def _adapter_name(number: int) -> str:
    return f"adapter-{number}"
