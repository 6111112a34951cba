"""Adapters in memory: loaded, evicted, required, and broken ones, which fail their own request alone."""

from contextlib import aclosing
from functools import partial

import pytest

from brain_server.engine.contract import (
    AdapterPolicy,
    Fallback,
    Generation,
    Reply,
    Tier,
    complete,
)
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AivoError,
    StudentModelNotFound,
)
from mesh.main_brain.base import BaseModel
from testing.adapters import publish
from testing.models.random_adapters import publish_unchecked, random_weights, recipe, with_nan
from tests.brain_server.torch_engine.requests import greedy, prompt_of


@pytest.fixture
async def error_by_student(
    blobs: S3Blobs, adapter_store: AdapterStore, reference: BaseModel, student_id: str
) -> dict[str, type[AivoError]]:
    """Students whose adapters are broken, each in another way, with the error that using them raises."""
    nan, huge, wide = (f"{student_id}-{kind}" for kind in ("nan", "huge", "wide"))
    recipe_for_base = partial(recipe, base_digest=reference.digest)
    await publish_unchecked(blobs, nan, with_nan(random_weights(6)), recipe=recipe_for_base())
    # Every number is finite, but what the model computes with them is not.
    await publish(adapter_store, huge, random_weights(6, strength=3e37), recipe=recipe_for_base())
    await publish(adapter_store, wide, random_weights(6, rank=32), recipe=recipe_for_base(rank=32))
    return {nan: AdapterCorrupt, huge: AdapterCorrupt, wide: AdapterIncompatible}


async def test_a_broken_adapter_fails_its_own_request_and_nothing_else(
    torch_engine: TorchEngine, error_by_student: dict[str, type[AivoError]], students: dict[str, bytes]
) -> None:
    good_reply = await complete(torch_engine, greedy("ada", max_tokens=4))
    for student, error in error_by_student.items():
        with pytest.raises(error):
            await complete(torch_engine, greedy(student, max_tokens=4))
        with pytest.raises(error):
            await torch_engine.warm(student)
        assert (await complete(torch_engine, greedy("ada", max_tokens=4))).text == good_reply.text
    assert (await complete(torch_engine, greedy(max_tokens=4))).fallback is Fallback.NO_STUDENT


async def test_an_outdated_adapter_falls_back_and_can_not_be_warmed(
    torch_engine: TorchEngine, adapter_store: AdapterStore, student_id: str
) -> None:
    await publish(adapter_store, student_id, random_weights(6), recipe=recipe(base_digest="0" * 64))
    reply = await complete(torch_engine, greedy(student_id, max_tokens=4))
    base_reply = await complete(torch_engine, greedy(max_tokens=4))
    assert (reply.adapter, reply.fallback, reply.text) == (None, Fallback.OUTDATED, base_reply.text)
    facts = torch_engine.facts.main_brain
    assert facts is not None
    assert reply.main_brain == base_reply.main_brain == facts.digest
    with pytest.raises(AdapterIncompatible):
        await torch_engine.warm(student_id)


async def test_a_warm_adapter_is_in_the_slot_until_it_is_evicted(
    torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
) -> None:
    manifest = await publish(adapter_store, student_id, random_weights(7), recipe=recipe(base_digest=reference.digest))
    warm_adapter = await torch_engine.warm(student_id)
    assert (warm_adapter.adapter.sha256, warm_adapter.bytes) == (manifest.sha256, manifest.size_bytes)
    assert warm_adapter.probe_tokens > 0
    newest = torch_engine.residencies()[0]
    assert (newest.adapter, newest.tier, newest.leases) == (warm_adapter.adapter, Tier.SLOT, 0)
    counts = torch_engine.counts
    assert min(counts.host.load_seconds, counts.slot.load_seconds) > 0
    assert counts.slot.bytes == sum(
        residency.bytes for residency in torch_engine.residencies() if residency.tier is Tier.SLOT
    )

    assert list(await torch_engine.evict(student_id)) == [warm_adapter.adapter]
    assert warm_adapter.adapter not in [residency.adapter for residency in torch_engine.residencies()]
    assert list(await torch_engine.evict(student_id)) == []


async def test_an_adapter_evicted_in_use_finishes_its_reply_and_then_leaves(
    torch_engine: TorchEngine, adapter_store: AdapterStore, reference: BaseModel, student_id: str
) -> None:
    await publish(adapter_store, student_id, random_weights(8), recipe=recipe(base_digest=reference.digest))
    undisturbed_reply = await complete(torch_engine, greedy(student_id))
    async with aclosing(torch_engine.stream(greedy(student_id))) as events:
        await anext(events)
        await torch_engine.evict(student_id)
        *_, reply = [event async for event in events]
    assert isinstance(reply, Reply)
    assert reply.text == undisturbed_reply.text
    assert student_id not in [residency.adapter.ref.student_id for residency in torch_engine.residencies()]


async def test_warming_a_student_without_a_model_is_an_error(torch_engine: TorchEngine, student_id: str) -> None:
    with pytest.raises(StudentModelNotFound):
        await torch_engine.warm(student_id)


async def test_a_required_adapter_is_never_replaced_by_the_base_model(
    torch_engine: TorchEngine, student_id: str
) -> None:
    with pytest.raises(StudentModelNotFound):
        await complete(
            torch_engine,
            Generation(prompt=prompt_of(), student_id=student_id, policy=AdapterPolicy.REQUIRE),
        )
