"""Replies of the vLLM engine, compared with plain transformers and PEFT. Uses a real vLLM in fp32 and the real store.

Adapters are random, so that replies are meaningless but differ between the students and the base model.
"""

import asyncio
import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import PeftModel

from brain_server.engine.contract import (
    AdapterPolicy,
    Delta,
    Fallback,
    FinishReason,
    Generation,
    Reply,
    Sampling,
    complete,
)
from brain_server.vllm_engine.engine import VllmEngine
from mesh.errors import InvalidField, StudentModelNotFound
from mesh.lm.chat import encode_prompt
from mesh.lm.grading import LABELS
from mesh.main_brain.base import BaseModel
from testing.models.peft_config import to_peft_config
from testing.models.random_adapters import SPEC
from testing.parts.vllm_server import CONTEXT_TOKENS
from tests.brain_server.vllm_engine.requests import SCALE, greedy, prompt_of

pytestmark = pytest.mark.slow

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"comment": {"type": "string", "minLength": 12, "maxLength": 24}},
        "required": ["comment"],
        "additionalProperties": False,
    }
)


def text_by_transformers(reference: BaseModel, generation: Generation, *, adapter: Path | None = None) -> str:
    """Returns what plain transformers, with PEFT if there is an adapter, decodes for this request alone."""
    tokens = torch.tensor([encode_prompt(reference.tokenizer, generation.prompt)])
    peft = None if adapter is None else PeftModel.from_pretrained(reference.model, adapter)
    # The stubs of transformers don't know that a causal language model has it.
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
    spec = dataclasses.replace(SPEC, alpha=int(SPEC.alpha * SCALE))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_bytes(to_peft_config(spec, base_model="any"))
    return folder


class TestDecoding:
    async def test_a_greedy_base_reply_is_that_of_plain_transformers(
        self, engine: VllmEngine, reference: BaseModel
    ) -> None:
        reply = await complete(engine, greedy())
        assert reply.text == text_by_transformers(reference, greedy())
        assert (reply.completion_tokens, reply.finish_reason) == (12, FinishReason.LENGTH)
        assert reply.prompt_tokens == len(encode_prompt(reference.tokenizer, prompt_of()))
        assert (reply.adapter, reply.fallback) == (None, Fallback.NO_STUDENT)

    async def test_a_greedy_reply_is_that_of_an_isolated_run_with_the_adapter_at_its_strength(
        self, engine: VllmEngine, reference: BaseModel, students: dict[str, bytes], tmp_path: Path
    ) -> None:
        reply = await complete(engine, greedy("ada"))
        assert reply.text == text_by_transformers(
            reference, greedy(), adapter=write_for_peft(tmp_path, students["ada"])
        )
        assert reply.text != text_by_transformers(reference, greedy())
        assert reply.adapter is not None
        assert (reply.adapter.ref.student_id, reply.fallback) == ("ada", None)

    async def test_students_and_the_base_model_at_once_never_mix(
        self, engine: VllmEngine, students: dict[str, bytes]
    ) -> None:
        student_ids = [*students, None]
        alone = {student: (await complete(engine, greedy(student, max_tokens=6))).text for student in student_ids}
        assert len(set(alone.values())) == len(student_ids)
        for order in (student_ids, student_ids[::-1], [None, "ada", None, "cleo"]):
            together = await asyncio.gather(*(complete(engine, greedy(student, max_tokens=6)) for student in order))
            assert [reply.text for reply in together] == [alone[student] for student in order]

    async def test_a_student_without_a_model_gets_the_base_model_with_the_reason(
        self, engine: VllmEngine, student_id: str
    ) -> None:
        reply = await complete(engine, greedy(student_id, max_tokens=2))
        assert (reply.adapter, reply.fallback) == (None, Fallback.NO_STUDENT_MODEL)
        with pytest.raises(StudentModelNotFound):
            await complete(engine, dataclasses.replace(greedy(student_id), policy=AdapterPolicy.REQUIRE))

    async def test_labels_are_weighed_by_the_probabilities_of_their_tokens(
        self, engine: VllmEngine, reference: BaseModel
    ) -> None:
        prompt = prompt_of("Is the sky blue?")
        weights = await engine.weigh(prompt, LABELS)
        assert math.fsum(weights.values()) == pytest.approx(1)
        head = encode_prompt(reference.tokenizer, prompt)
        scores = []
        for label in LABELS:
            tail = reference.tokenizer(label, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = reference.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[len(head) - 1 + place, token]) for place, token in enumerate(tail)))
        expected = torch.tensor(scores).softmax(-1).tolist()
        assert [weights[label] for label in LABELS] == pytest.approx(expected, rel=1e-2)


class TestReplies:
    async def test_the_deltas_add_up_to_the_reply(self, engine: VllmEngine, students: dict[str, bytes]) -> None:
        async with aclosing(engine.stream(greedy("ben"))) as events:
            *deltas, reply = [event async for event in events]
        assert isinstance(reply, Reply)
        texts = [delta.text for delta in deltas if isinstance(delta, Delta)]
        assert len(texts) > 3
        assert all(texts)
        assert "".join(texts) == reply.text

    async def test_a_reply_ends_before_a_stop_sequence(self, engine: VllmEngine) -> None:
        text = (await complete(engine, greedy())).text
        stop = text[len(text) // 2 :][:4]
        sampling = Sampling(temperature=0.0, max_tokens=12, stop=(stop,))
        reply = await complete(engine, Generation(prompt=prompt_of(), sampling=sampling))
        assert (reply.text, reply.finish_reason) == (text[: text.index(stop)], FinishReason.STOP)

    async def test_the_end_of_the_turn_is_not_a_token_of_the_reply(
        self, engine: VllmEngine, reference: BaseModel
    ) -> None:
        prompt = prompt_of("Say hello, and nothing else.")
        reply = await complete(engine, Generation(prompt=prompt, sampling=Sampling(temperature=0.0, max_tokens=64)))
        assert reply.finish_reason is FinishReason.STOP
        assert reply.completion_tokens == len(reference.tokenizer(reply.text, add_special_tokens=False)["input_ids"])

    async def test_a_reply_under_a_schema_is_one_delta_with_a_whole_document(self, engine: VllmEngine) -> None:
        async with aclosing(engine.stream(dataclasses.replace(greedy(max_tokens=8), json_schema=SCHEMA))) as events:
            delta, reply = [event async for event in events]
        assert isinstance(reply, Reply)
        assert delta == Delta(reply.text)
        assert set(json.loads(reply.text)) == {"comment"}
        assert reply.finish_reason is FinishReason.STOP

    async def test_a_document_that_does_not_fit_its_tokens_is_an_error(self, engine: VllmEngine) -> None:
        with pytest.raises(InvalidField, match="max_tokens"):
            await complete(engine, dataclasses.replace(greedy(max_tokens=1), json_schema=SCHEMA))

    async def test_a_prompt_that_leaves_no_room_for_a_reply_is_an_error(self, engine: VllmEngine) -> None:
        with pytest.raises(InvalidField, match="prompt"):
            await complete(engine, Generation(prompt=prompt_of("word " * CONTEXT_TOKENS)))
