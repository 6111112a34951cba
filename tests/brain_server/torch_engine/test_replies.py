"""What the engine replies: the real base model in fp32, beside plain transformers and PEFT.

Adapters are random. Their replies mean nothing, but differ from student to student and from the base model.
"""

import asyncio
import itertools
import json
import re
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import PeftModel

from brain_server.engine.contract import (
    Delta,
    Fallback,
    FinishReason,
    Generation,
    Reply,
    Sampling,
    complete,
)
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.manifest import Serving
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    InvalidField,
)
from mesh.lm.chat import encode_prompt
from mesh.lm.repetition import run_tokens_of
from mesh.main_brain.base import BaseModel
from testing.adapters import publish
from testing.models.peft_config import to_peft_config
from testing.models.random_adapters import SPEC, random_weights, recipe
from testing.waiting import until_loaded
from tests.brain_server.torch_engine.requests import greedy, prompt_of

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"feedback": {"type": "string"}, "next_step": {"type": "string"}},
        "required": ["feedback", "next_step"],
        "additionalProperties": False,
    }
)


def text_by_transformers(reference: BaseModel, generation: Generation, *, adapter: Path | None = None) -> str:
    """What plain transformers, with PEFT if there is an adapter, decodes for one request alone."""
    tokens = torch.tensor([encode_prompt(reference.tokenizer, generation.prompt)])
    peft = None if adapter is None else PeftModel.from_pretrained(reference.model, adapter)
    # The stubs of transformers lack `generate` for causal language models.
    generate = cast("Callable[..., torch.Tensor]", (peft or reference.model).generate)
    try:
        output = generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=generation.sampling.max_tokens,
            pad_token_id=reference.tokenizer.pad_token_id,
        )
    finally:
        if peft is not None:
            peft.unload()
    return str(reference.tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True))


def write_for_peft(folder: Path, weights: bytes) -> Path:
    """Writes an adapter as PEFT loads it, and returns the folder."""
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_bytes(to_peft_config(SPEC, base_model="any"))
    return folder


async def test_a_greedy_base_reply_is_that_of_plain_transformers(
    torch_engine: TorchEngine, reference: BaseModel
) -> None:
    reply = await complete(torch_engine, greedy())
    assert reply.text == text_by_transformers(reference, greedy())
    assert (reply.completion_tokens, reply.finish_reason) == (12, FinishReason.LENGTH)
    assert (reply.adapter, reply.fallback) == (None, Fallback.NO_STUDENT)


async def test_a_greedy_reply_is_token_for_token_that_of_an_isolated_run_with_the_adapter(
    torch_engine: TorchEngine, reference: BaseModel, students: dict[str, bytes], tmp_path: Path
) -> None:
    reply = await complete(torch_engine, greedy("ada"))
    reference_text = text_by_transformers(reference, greedy(), adapter=write_for_peft(tmp_path, students["ada"]))
    assert reply.text == reference_text
    assert reply.text != text_by_transformers(reference, greedy())
    assert reply.adapter is not None
    assert (reply.adapter.ref.student_id, reply.fallback) == ("ada", None)


async def test_students_in_turn_and_at_once_never_mix(torch_engine: TorchEngine, students: dict[str, bytes]) -> None:
    callers = [*students, None]
    alone = {student: (await complete(torch_engine, greedy(student, max_tokens=6))).text for student in callers}
    assert len(set(alone.values())) == 3
    for order in itertools.permutations(callers):
        together = await asyncio.gather(*(complete(torch_engine, greedy(student, max_tokens=6)) for student in order))
        assert [reply.text for reply in together] == [alone[student] for student in order]


async def test_a_new_version_answers_new_requests_and_leaves_those_in_flight_alone(
    torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
) -> None:
    await publish(adapter_store, student_id, random_weights(3), recipe=recipe(base_digest=reference.digest))
    old_reply = await complete(torch_engine, greedy(student_id))
    async with aclosing(torch_engine.stream(greedy(student_id))) as events:
        first_event = await anext(events)
        new_manifest = await publish(
            adapter_store, student_id, random_weights(4), recipe=recipe(base_digest=reference.digest)
        )
        warm_up = asyncio.create_task(torch_engine.warm(student_id))
        *_, reply_in_flight = [first_event, *[event async for event in events]]
    assert isinstance(reply_in_flight, Reply)
    assert reply_in_flight.text == old_reply.text
    assert (await warm_up).adapter.ref.version == 2
    new_reply = await complete(torch_engine, greedy(student_id))
    assert new_reply.adapter is not None
    assert new_reply.adapter.sha256 == new_manifest.sha256
    assert new_reply.text != old_reply.text
    assert (await complete(torch_engine, greedy(student_id, version=1))).text == old_reply.text


async def test_the_serving_profile_fills_what_the_request_leaves_open(
    torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
) -> None:
    serving = Serving(temperature=0.0, top_p=1.0, max_tokens=5)
    new_recipe = recipe(base_digest=reference.digest, serving=serving)
    await publish(adapter_store, student_id, random_weights(5), recipe=new_recipe)
    generation = Generation(prompt=prompt_of(), student_id=student_id)
    replies = [await complete(torch_engine, generation) for _ in range(2)]
    assert replies[0].completion_tokens == 5
    assert replies[0].text == replies[1].text


async def test_prompts_and_labels_may_be_read_token_by_token(
    torch_engine: TorchEngine, engine_settings: EngineSettings, adapter_store: AdapterStore
) -> None:
    labels, prompt = ["Yes", "Perhaps not today"], prompt_of("Is the sky blue?")
    usual_results = await torch_engine.weigh(prompt, labels), (await complete(torch_engine, greedy())).text
    settings = engine_settings.model_copy(update={"prefill_tokens": 1})
    async with TorchEngine.open(settings, adapter_store) as engine:
        await until_loaded(engine)
        slow_results = await engine.weigh(prompt, labels), (await complete(engine, greedy())).text
    assert slow_results[0] == pytest.approx(usual_results[0], rel=1e-3)
    assert slow_results[1] == usual_results[1]


async def test_the_deltas_are_whole_characters_and_add_up_to_the_reply(torch_engine: TorchEngine) -> None:
    # A character of several tokens at a time, so that the model has a choice at each.
    characters = {"type": "string", "pattern": "^[日本語🎉🚀]{12}$"}
    schema = {"type": "object", "properties": {"text": characters}, "required": ["text"]}
    generation = Generation(prompt=prompt_of(), json_schema=json.dumps(schema, ensure_ascii=False))
    async with aclosing(torch_engine.stream(generation)) as events:
        *deltas, reply = [event async for event in events]
    assert isinstance(reply, Reply)
    texts = [delta.text for delta in deltas if isinstance(delta, Delta)]
    assert len(texts) > 5
    assert "".join(texts) == reply.text
    assert all(text and "\ufffd" not in text for text in texts)
    assert re.fullmatch("[日本語🎉🚀]{12}", json.loads(reply.text)["text"])
    assert reply.finish_reason is FinishReason.STOP


async def test_the_same_seed_gives_the_same_reply_and_another_seed_another(torch_engine: TorchEngine) -> None:
    def sampled_with(seed: int) -> Generation:
        sampling = Sampling(temperature=1.5, top_p=1.0, max_tokens=8, seed=seed)
        return Generation(prompt=prompt_of(), sampling=sampling)

    texts = [(await complete(torch_engine, sampled_with(seed))).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("max_tokens", [16, 30])
async def test_a_reply_under_a_schema_is_whole_at_any_temperature(torch_engine: TorchEngine, max_tokens: int) -> None:
    sampling = Sampling(temperature=2.0, top_p=1.0, max_tokens=max_tokens)
    reply = await complete(torch_engine, Generation(prompt=prompt_of(), json_schema=SCHEMA, sampling=sampling))
    assert set(json.loads(reply.text)) == {"feedback", "next_step"}
    assert reply.completion_tokens <= max_tokens
    assert reply.finish_reason is FinishReason.STOP


async def test_a_prompt_longer_than_the_context_window_is_refused_with_the_limit(torch_engine: TorchEngine) -> None:
    with pytest.raises(InvalidField) as error:
        await complete(torch_engine, Generation(prompt=prompt_of("one two three " * 3000)))
    (violation,) = error.value.violations
    assert violation.field == "prompt"
    assert re.search(r"at most \d+ fit", violation.description)


async def test_a_run_that_must_not_repeat_occurs_once_in_a_reply(
    torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
) -> None:
    prompt, texts = prompt_of("Tell me a long story about the sea and a ship."), []
    for version, run in enumerate((0, 2), start=1):
        serving = Serving(temperature=0.7, top_p=0.9, max_tokens=150, unrepeated_run=run)
        new_recipe = recipe(base_digest=reference.digest, serving=serving)
        await publish(adapter_store, student_id, random_weights(5), recipe=new_recipe)
        replies = [
            await complete(
                torch_engine,
                Generation(prompt=prompt, student_id=student_id, version=version, sampling=Sampling(seed=seed)),
            )
            for seed in range(4)
        ]
        texts.append([reply.text for reply in replies])
    free, held = texts
    assert any(repeated_runs(reference, text, 2) for text in free)
    assert not any(repeated_runs(reference, text, 2) for text in held)


async def test_a_schema_decides_alone_what_may_follow(
    torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
) -> None:
    serving = Serving(temperature=0.0, top_p=1.0, max_tokens=120, unrepeated_run=2)
    new_recipe = recipe(base_digest=reference.digest, serving=serving)
    await publish(adapter_store, student_id, random_weights(5), recipe=new_recipe)
    reply = await complete(torch_engine, Generation(prompt=prompt_of(), student_id=student_id, json_schema=SCHEMA))
    assert set(json.loads(reply.text)) == {"feedback", "next_step"}


def repeated_runs(reference: BaseModel, text: str, length: int) -> set[tuple[int, ...]]:
    """The runs of tokens without a digit, ending where a word begins, that a text has more than once."""
    tokens = reference.tokenizer(text, add_special_tokens=False)["input_ids"]
    kinds = run_tokens_of(reference.tokenizer)
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return {run for run in runs if runs.count(run) > 1 and not kinds.digits & set(run) and run[-1] in kinds.word_starts}
