"""The engine, whole: the real base model in fp32, adapters in the real store, plain transformers and PEFT beside it.

Adapters are random, so that what they say means nothing but differs from student to student and from the base model.
"""

import asyncio
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
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
    Tier,
    complete,
)
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.manifest import Serving
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AivoError,
    DeadlineExceeded,
    InvalidField,
    ModelNotLoaded,
    QueueFull,
    ServerDraining,
    StudentModelNotFound,
)
from mesh.lm.base import BaseModel, DtypeName, load_base
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.chat import Prompt, Role, Turn, encode_prompt
from mesh.lm.lora import to_peft_config
from mesh.tutoring.profile import StudentProfile
from testing.models.random_adapters import SPEC, publish_unchecked, random_weights, recipe, with_nan

EMOJI = "👩‍🚀 naïve 日本語 🎉"
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"feedback": {"type": "string"}, "next_step": {"type": "string"}},
        "required": ["feedback", "next_step"],
        "additionalProperties": False,
    }
)


def prompt_of(text: str = "Tell me everything about plants, in a very long text.") -> Prompt:
    return Prompt(
        profile=StudentProfile(grade="5"), turns=(Turn(role=Role.STUDENT, text=text),), instruction="You are a tutor."
    )


def greedy(
    student_id: str | None = None, *, max_tokens: int = 12, version: int | None = None, deadline: float | None = None
) -> Generation:
    return Generation(
        prompt=prompt_of(),
        student_id=student_id,
        version=version,
        deadline=deadline,
        sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
    )


def text_by_transformers(reference: BaseModel, generation: Generation, *, adapter: Path | None = None) -> str:
    """What plain transformers, with PEFT if there is an adapter, decodes in isolation."""
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


def weighed_by_transformers(reference: BaseModel, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
    """The probability of each label as the reply, by plain transformers."""
    head = encode_prompt(reference.tokenizer, prompt)
    scores = []
    for label in labels:
        tail = reference.tokenizer(label, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = reference.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[len(head) - 1 + place, token]) for place, token in enumerate(tail)))
    return dict(zip(labels, torch.tensor(scores).softmax(-1).tolist(), strict=True))


def written_for_peft(folder: Path, weights: bytes) -> Path:
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_bytes(to_peft_config(SPEC, base_model="any"))
    return folder


@pytest.fixture(scope="module")
async def students(adapter_store: AdapterStore, reference: BaseModel) -> dict[str, bytes]:
    """Two students and their adapters' weights."""
    weights = {"ada": random_weights(1), "ben": random_weights(2)}
    for student, data in weights.items():
        await adapter_store.publish(student, data, recipe=recipe(base_digest=reference.digest))
    return weights


class TestWhatDecodes:
    async def test_a_greedy_base_reply_is_that_of_plain_transformers(
        self, torch_engine: TorchEngine, reference: BaseModel
    ) -> None:
        reply = await complete(torch_engine, greedy())
        assert reply.text == text_by_transformers(reference, greedy())
        assert (reply.completion_tokens, reply.finish_reason) == (12, FinishReason.LENGTH)
        assert (reply.adapter, reply.fallback) == (None, Fallback.NO_STUDENT)

    async def test_a_greedy_reply_is_token_for_token_that_of_an_isolated_run_with_the_adapter(
        self, torch_engine: TorchEngine, reference: BaseModel, students: dict[str, bytes], tmp_path: Path
    ) -> None:
        reply = await complete(torch_engine, greedy("ada"))
        isolated = text_by_transformers(reference, greedy(), adapter=written_for_peft(tmp_path, students["ada"]))
        assert reply.text == isolated
        assert reply.text != text_by_transformers(reference, greedy())
        assert reply.adapter is not None
        assert (reply.adapter.ref.student_id, reply.fallback) == ("ada", None)

    async def test_students_in_turn_and_at_once_never_mix(
        self, torch_engine: TorchEngine, students: dict[str, bytes]
    ) -> None:
        who = [*students, None]
        alone = {student: (await complete(torch_engine, greedy(student, max_tokens=6))).text for student in who}
        assert len(set(alone.values())) == 3
        for order in itertools.permutations(who):
            together = await asyncio.gather(*(complete(torch_engine, greedy(one, max_tokens=6)) for one in order))
            assert [reply.text for reply in together] == [alone[student] for student in order]

    async def test_a_new_version_answers_new_requests_and_leaves_the_ones_in_flight(
        self, torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
    ) -> None:
        await adapter_store.publish(student_id, random_weights(3), recipe=recipe(base_digest=reference.digest))
        before = await complete(torch_engine, greedy(student_id))
        async with aclosing(torch_engine.stream(greedy(student_id))) as events:
            first = await anext(events)
            second = await adapter_store.publish(
                student_id, random_weights(4), recipe=recipe(base_digest=reference.digest)
            )
            warming = asyncio.create_task(torch_engine.warm(student_id))
            *_, in_flight = [first, *[event async for event in events]]
        assert isinstance(in_flight, Reply)
        assert in_flight.text == before.text
        assert (await warming).adapter.ref.version == 2
        after = await complete(torch_engine, greedy(student_id))
        assert after.adapter is not None
        assert after.adapter.sha256 == second.sha256
        assert after.text != before.text
        assert (await complete(torch_engine, greedy(student_id, version=1))).text == before.text

    async def test_the_serving_profile_fills_what_the_request_leaves_open(
        self, torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
    ) -> None:
        serving = Serving(temperature=0.0, top_p=1.0, max_tokens=5)
        of = recipe(base_digest=reference.digest, serving=serving)
        await adapter_store.publish(student_id, random_weights(5), recipe=of)
        generation = Generation(prompt=prompt_of(), student_id=student_id)
        replies = [await complete(torch_engine, generation) for _ in range(2)]
        assert replies[0].completion_tokens == 5
        assert replies[0].text == replies[1].text

    async def test_labels_are_weighed_by_the_probabilities_of_their_tokens(
        self, torch_engine: TorchEngine, reference: BaseModel
    ) -> None:
        labels = ["Yes", "No", "Perhaps not today"]
        prompt = prompt_of("Is the sky blue?")
        weights = await torch_engine.weigh(prompt, labels)
        assert math.fsum(weights.values()) == pytest.approx(1)
        expected = weighed_by_transformers(reference, prompt, labels)
        assert weights == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize(("dtype", "rel"), [("bfloat16", 0.2), ("float32", 1e-3)])
    async def test_an_engine_answers_in_either_precision(
        self,
        small_llama: Path,
        engine_settings: EngineSettings,
        adapter_store: AdapterStore,
        dtype: DtypeName,
        rel: float,
    ) -> None:
        small = load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")
        settings = engine_settings.model_copy(update={"base_model": str(small_llama), "dtype": dtype})
        async with TorchEngine.open(settings, adapter_store) as engine:
            facts = await engine.wait_loaded()
            assert (facts.ready, facts.dtype) == (True, dtype)
            reply = await complete(engine, greedy())
            assert (reply.completion_tokens, reply.finish_reason) == (12, FinishReason.LENGTH)
            labels = ["Yes", "No", "Perhaps not today"]
            weights = await engine.weigh(prompt_of(), labels)
        assert weights == pytest.approx(weighed_by_transformers(small, prompt_of(), labels), rel=rel)

    async def test_prompts_and_labels_may_be_read_token_by_token(
        self, torch_engine: TorchEngine, engine_settings: EngineSettings, adapter_store: AdapterStore
    ) -> None:
        labels, prompt = ["Yes", "Perhaps not today"], prompt_of("Is the sky blue?")
        at_once = await torch_engine.weigh(prompt, labels), (await complete(torch_engine, greedy())).text
        settings = engine_settings.model_copy(update={"prefill_tokens": 1})
        async with TorchEngine.open(settings, adapter_store) as engine:
            await engine.wait_loaded()
            slowly = await engine.weigh(prompt, labels), (await complete(engine, greedy())).text
        assert slowly[0] == pytest.approx(at_once[0], rel=1e-3)
        assert slowly[1] == at_once[1]


class TestWhatIsSaid:
    async def test_the_deltas_are_whole_characters_and_add_up_to_the_reply(self, torch_engine: TorchEngine) -> None:
        schema = {"type": "object", "properties": {"said": {"const": EMOJI}}, "required": ["said"]}
        generation = Generation(prompt=prompt_of(), json_schema=json.dumps(schema, ensure_ascii=False))
        async with aclosing(torch_engine.stream(generation)) as events:
            *deltas, reply = [event async for event in events]
        assert isinstance(reply, Reply)
        texts = [delta.text for delta in deltas if isinstance(delta, Delta)]
        assert len(texts) > 5
        assert "".join(texts) == reply.text
        assert all(text and "\ufffd" not in text for text in texts)
        assert json.loads(reply.text) == {"said": EMOJI}
        assert reply.finish_reason is FinishReason.STOP

    async def test_the_same_seed_says_the_same_and_another_does_not(self, torch_engine: TorchEngine) -> None:
        def asked(seed: int) -> Generation:
            sampling = Sampling(temperature=1.5, top_p=1.0, max_tokens=8, seed=seed)
            return Generation(prompt=prompt_of(), sampling=sampling)

        texts = [(await complete(torch_engine, asked(seed))).text for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]

    @pytest.mark.parametrize("max_tokens", [16, 30])
    async def test_a_reply_under_a_schema_is_whole_at_any_temperature(
        self, torch_engine: TorchEngine, max_tokens: int
    ) -> None:
        sampling = Sampling(temperature=2.0, top_p=1.0, max_tokens=max_tokens)
        reply = await complete(torch_engine, Generation(prompt=prompt_of(), json_schema=SCHEMA, sampling=sampling))
        assert set(json.loads(reply.text)) == {"feedback", "next_step"}
        assert reply.completion_tokens <= max_tokens
        assert reply.finish_reason is FinishReason.STOP

    async def test_a_prompt_longer_than_the_context_window_is_refused_with_the_limit(
        self, torch_engine: TorchEngine
    ) -> None:
        with pytest.raises(InvalidField) as caught:
            await complete(torch_engine, Generation(prompt=prompt_of("one two three " * 3000)))
        (violation,) = caught.value.violations
        assert violation.field == "prompt"
        assert re.search(r"at most \d+ fit", violation.description)


class TestWhatStops:
    async def test_closing_a_stream_stops_decoding_within_a_token_and_the_next_request_runs(
        self, torch_engine: TorchEngine
    ) -> None:
        before = torch_engine.counts.tokens
        stream = torch_engine.stream(greedy(max_tokens=1000))
        await anext(stream)
        await stream.aclose()
        stopped = torch_engine.counts.tokens
        reply = await complete(torch_engine, greedy(max_tokens=3))
        assert reply.completion_tokens == 3
        # The delta that was read, and no more than the token under way when it was.
        assert stopped - before <= 3
        # Nothing but the reply was decoded since: the closed stream left no work behind.
        assert torch_engine.counts.tokens == stopped + 3
        assert torch_engine.counts.waiting == 0

    async def test_cancelling_a_call_that_waits_frees_its_place(self, narrow_engine: TorchEngine) -> None:
        async with aclosing(narrow_engine.stream(greedy(max_tokens=1000))) as running:
            await anext(running)
            waiting = asyncio.create_task(complete(narrow_engine, greedy()))
            await _until(lambda: narrow_engine.counts.waiting == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert narrow_engine.counts.waiting == 0

    async def test_a_full_queue_is_told_at_once_and_when_to_come_back(self, narrow_engine: TorchEngine) -> None:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(aclosing(narrow_engine.stream(greedy(max_tokens=1000))))
            await anext(running)
            waiting = [asyncio.create_task(complete(narrow_engine, greedy(max_tokens=2))) for _ in range(2)]
            await _until(lambda: narrow_engine.counts.waiting == 2)
            with pytest.raises(QueueFull) as caught:
                await complete(narrow_engine, greedy())
            assert caught.value.retry_seconds > 0
            await running.aclose()
            assert [reply.completion_tokens for reply in await asyncio.gather(*waiting)] == [2, 2]

    async def test_work_whose_deadline_passed_costs_nothing(self, narrow_engine: TorchEngine) -> None:
        before = narrow_engine.counts.tokens
        with pytest.raises(DeadlineExceeded):
            await complete(narrow_engine, greedy(deadline=time.monotonic() - 1))
        assert narrow_engine.counts.tokens == before

    async def test_a_deadline_that_passes_in_the_queue_is_told_then(self, narrow_engine: TorchEngine) -> None:
        async with aclosing(narrow_engine.stream(greedy(max_tokens=1000))) as running:
            await anext(running)
            with pytest.raises(DeadlineExceeded):
                await complete(narrow_engine, greedy(deadline=time.monotonic() + 0.1))
            # The one before it is not done: nobody waited for it.
            assert isinstance(await anext(running), Delta)

    async def test_a_deadline_that_passes_while_decoding_stops_it(self, torch_engine: TorchEngine) -> None:
        before = torch_engine.counts.tokens
        with pytest.raises(DeadlineExceeded):
            await complete(torch_engine, greedy(max_tokens=4000, deadline=time.monotonic() + 1))
        assert torch_engine.counts.tokens - before < 1000


class TestABadAdapter:
    @pytest.fixture
    async def bad_adapters(
        self, blobs: S3Blobs, adapter_store: AdapterStore, reference: BaseModel, student_id: str
    ) -> dict[str, type[AivoError]]:
        """Students whose adapter is broken, each in its own way, and what using it raises."""
        nan, foreign, huge, wide = (f"{student_id}-{kind}" for kind in ("nan", "foreign", "huge", "wide"))
        mine = partial(recipe, base_digest=reference.digest)
        await publish_unchecked(blobs, nan, with_nan(random_weights(6)), recipe=mine())
        await adapter_store.publish(foreign, random_weights(6), recipe=recipe(base_digest="0" * 64))
        # Every number is finite, what the model computes with them is not.
        await adapter_store.publish(huge, random_weights(6, strength=3e37), recipe=mine())
        await adapter_store.publish(wide, random_weights(6, rank=32), recipe=mine(rank=32))
        return {nan: AdapterCorrupt, foreign: AdapterIncompatible, huge: AdapterCorrupt, wide: AdapterIncompatible}

    async def test_it_fails_its_own_call_and_nothing_else(
        self, torch_engine: TorchEngine, bad_adapters: dict[str, type[AivoError]], students: dict[str, bytes]
    ) -> None:
        good = await complete(torch_engine, greedy("ada", max_tokens=4))
        for student, error in bad_adapters.items():
            with pytest.raises(error):
                await complete(torch_engine, greedy(student, max_tokens=4))
            with pytest.raises(error):
                await torch_engine.warm(student)
            assert (await complete(torch_engine, greedy("ada", max_tokens=4))).text == good.text
        assert (await complete(torch_engine, greedy(max_tokens=4))).fallback is Fallback.NO_STUDENT


class TestResidency:
    async def test_a_warm_adapter_is_in_the_slot_until_it_is_evicted(
        self, torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
    ) -> None:
        manifest = await adapter_store.publish(
            student_id, random_weights(7), recipe=recipe(base_digest=reference.digest)
        )
        warmed = await torch_engine.warm(student_id)
        assert (warmed.adapter.sha256, warmed.bytes) == (manifest.sha256, manifest.size_bytes)
        assert warmed.probe_tokens > 0
        newest = torch_engine.residencies()[0]
        assert (newest.adapter, newest.tier, newest.leases) == (warmed.adapter, Tier.SLOT, 0)
        counts = torch_engine.counts
        assert min(counts.host.load_seconds, counts.slot.load_seconds) > 0
        assert counts.slot.bytes == sum(one.bytes for one in torch_engine.residencies() if one.tier is Tier.SLOT)

        assert list(await torch_engine.evict(student_id)) == [warmed.adapter]
        assert warmed.adapter not in [residency.adapter for residency in torch_engine.residencies()]
        assert list(await torch_engine.evict(student_id)) == []

    async def test_an_adapter_evicted_in_use_finishes_its_reply_and_is_gone_then(
        self, torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
    ) -> None:
        await adapter_store.publish(student_id, random_weights(8), recipe=recipe(base_digest=reference.digest))
        alone = await complete(torch_engine, greedy(student_id))
        async with aclosing(torch_engine.stream(greedy(student_id))) as events:
            await anext(events)
            await torch_engine.evict(student_id)
            *_, reply = [event async for event in events]
        assert isinstance(reply, Reply)
        assert reply.text == alone.text
        assert student_id not in [one.adapter.ref.student_id for one in torch_engine.residencies()]

    async def test_warming_a_student_without_a_model_is_an_error(
        self, torch_engine: TorchEngine, student_id: str
    ) -> None:
        with pytest.raises(StudentModelNotFound):
            await torch_engine.warm(student_id)

    async def test_a_required_adapter_is_never_replaced_by_the_base_model(
        self, torch_engine: TorchEngine, student_id: str
    ) -> None:
        with pytest.raises(StudentModelNotFound):
            await complete(
                torch_engine,
                Generation(prompt=prompt_of(), student_id=student_id, policy=AdapterPolicy.REQUIRE),
            )


class TestLoadingAndClosing:
    async def test_a_model_that_cannot_be_loaded_is_told_and_nothing_crashes(
        self, engine_settings: EngineSettings, adapter_store: AdapterStore, tmp_path: Path
    ) -> None:
        settings = engine_settings.model_copy(update={"base_model": str(tmp_path / "nowhere")})
        async with TorchEngine.open(settings, adapter_store) as engine:
            facts = await engine.wait_loaded()
            assert (facts.ready, facts.loading, facts.dtype) == (False, False, "")
            assert "nowhere" in facts.reason
            with pytest.raises(ModelNotLoaded, match="nowhere"):
                await complete(engine, greedy())

    async def test_the_fallback_answers_if_allowed_and_health_says_for_what(
        self,
        engine_settings: EngineSettings,
        adapter_store: AdapterStore,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        # A hub that has nothing: the real client, told to stay offline, over an empty cache.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        asked = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
        settings = engine_settings.model_copy(update={"base_model": asked, "allow_fallback_model": True})
        async with TorchEngine.open(settings, adapter_store) as engine:
            facts = await engine.wait_loaded()
            assert (facts.ready, facts.model, facts.fallback_for) == (True, DEFAULT_BASE_MODEL, asked)
            assert asked in facts.reason
            assert (await complete(engine, greedy(max_tokens=2))).model == DEFAULT_BASE_MODEL

    async def test_it_opens_at_once_loads_beside_and_closing_stops_what_decodes(
        self, engine_settings: EngineSettings, adapter_store: AdapterStore
    ) -> None:
        async with TorchEngine.open(engine_settings, adapter_store) as engine:
            assert (engine.facts.ready, engine.facts.loading) == (False, True)
            with pytest.raises(ModelNotLoaded, match="loading"):
                await complete(engine, greedy())
            assert (await engine.wait_loaded()).ready
            running = engine.stream(greedy(max_tokens=4000))
            await anext(running)
            waiting = asyncio.create_task(complete(engine, greedy()))
            await _until(lambda: engine.counts.waiting == 1)
        with pytest.raises(ServerDraining):
            async for _ in running:
                pass
        with pytest.raises(ServerDraining):
            await waiting


async def _until(holds: Callable[[], bool]) -> None:
    """Lets the engine's tasks run until something holds."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)
