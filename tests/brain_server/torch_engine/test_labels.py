"""How the engine weighs labels, against plain transformers, in either precision."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from brain_server.engine.contract import FinishReason, complete
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.store import AdapterStore
from mesh.lm.chat import Prompt, encode_prompt
from mesh.main_brain.base import BaseModel, DtypeName, load_base
from testing.waiting import until_loaded
from tests.brain_server.torch_engine.requests import greedy, prompt_of

LABELS = ["Yes", "No", "Perhaps not today"]


def weights_by_transformers(reference: BaseModel, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
    """The probability of each label as the reply, by plain transformers."""
    head = encode_prompt(reference.tokenizer, prompt)
    scores = []
    for label in labels:
        tail = reference.tokenizer(label, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            log_probabilities_TV = reference.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        label_log_probabilities = log_probabilities_TV[len(head) - 1 :]
        scores.append(sum(float(label_log_probabilities[index, token]) for index, token in enumerate(tail)))
    return dict(zip(labels, torch.tensor(scores).softmax(-1).tolist(), strict=True))


async def test_labels_are_weighed_by_the_probabilities_of_their_tokens(
    torch_engine: TorchEngine, reference: BaseModel
) -> None:
    prompt = prompt_of("Is the sky blue?")
    weights = await torch_engine.weigh(prompt, LABELS)
    assert math.fsum(weights.values()) == pytest.approx(1)
    assert weights == pytest.approx(weights_by_transformers(reference, prompt, LABELS), rel=1e-3)


@pytest.mark.parametrize(("dtype", "rel"), [("bfloat16", 0.2), ("float32", 1e-3)])
async def test_an_engine_answers_in_either_precision(
    small_llama: Path, engine_settings: EngineSettings, adapter_store: AdapterStore, dtype: DtypeName, rel: float
) -> None:
    small_base = load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")
    settings = engine_settings.model_copy(update={"base_model": str(small_llama), "dtype": dtype})
    async with TorchEngine.open(settings, adapter_store) as engine:
        facts = await until_loaded(engine)
        assert (facts.ready, facts.dtype) == (True, dtype)
        reply = await complete(engine, greedy())
        assert (reply.completion_tokens, reply.finish_reason) == (12, FinishReason.LENGTH)
        weights = await engine.weigh(prompt_of(), LABELS)
    assert weights == pytest.approx(weights_by_transformers(small_base, prompt_of(), LABELS), rel=rel)
