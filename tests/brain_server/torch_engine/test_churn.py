"""Every reply is, token for token, that of an isolated run with its adapter, whatever happens meanwhile."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from brain_server.engine.contract import LoadedAdapter
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.main_brain.base import BaseModel, load_base
from testing.load.churn import Churn, ReplyKind, publish_students
from testing.models.random_adapters import Widths
from testing.models.reference_replies import IsolatedDecoder, mismatches
from testing.waiting import until_loaded

REQUESTS = 2_000
STUDENTS = 50
VERSIONS = 2


@pytest.fixture(scope="module")
def small_base(small_llama: Path) -> BaseModel:
    """A small model: the default base model would take many minutes instead of one."""
    return load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")


@pytest.mark.slow
async def test_no_reply_ever_holds_a_token_decoded_with_another_adapter(
    small_base: BaseModel, engine_settings: EngineSettings, blobs: S3Blobs
) -> None:
    store = AdapterStore(blobs, tenant="churn")
    students = await publish_students(
        store,
        count=STUDENTS,
        versions=VERSIONS,
        widths=Widths.of(small_base.model.config),
        base_digest=small_base.digest,
    )
    manifests = [manifest for versions in students.values() for manifest in versions]
    settings = engine_settings.model_copy(
        update={
            "base_model": small_base.name,
            "queue_limit": 64,
            "student_limit": 64,
            "anonymous_limit": 64,
            "kv_cache_bytes": 1024 * 1024,
            # The longer prompt takes three steps to read.
            "prefill_tokens": 24,
            "adapter_pointer_ttl_seconds": 0.5,
            # Room for a fifth of all versions, so that they leave memory as well as slots.
            "adapter_host_bytes": len(manifests) // 5 * manifests[0].size_bytes,
        }
    )
    assert settings.max_batch == settings.adapter_slots == 4
    async with TorchEngine.open(settings, store) as engine:
        facts = await until_loaded(engine)
        assert facts.ready, facts.reason
        churn = Churn(engine, store, students=students, seed=7)
        records = await churn.run(REQUESTS, max_concurrent=24)
        counts = engine.counts
        assert (counts.waiting, counts.running) == (0, 0)
        assert not [residency for residency in engine.residencies() if residency.leases]

    adapters = {
        LoadedAdapter(ref=manifest.ref, sha256=manifest.sha256): (await store.fetch(manifest.ref)).weights
        for manifest in manifests
    }
    decoder = IsolatedDecoder(small_base, {identity.ref: weights for identity, weights in adapters.items()})
    assert not await asyncio.to_thread(mismatches, records, decoder, adapters=adapters)

    # Everything above happened, and often.
    replies = [record.reply for record in records if record.reply is not None]
    assert len(records) == REQUESTS
    assert len(replies) > 0.75 * REQUESTS
    assert sum(record.has_expired for record in records) > 0.01 * REQUESTS
    assert sum(record.reply is None and not record.has_expired for record in records) > 0.05 * REQUESTS
    assert len({reply.adapter for reply in replies}) > 0.75 * len(manifests)
    assert Counter(record.request.kind for record in records if record.reply)[ReplyKind.SCHEMA] > 0.03 * REQUESTS
    assert len({reply.text for reply in replies}) > len(manifests)
    assert churn.activations > 50
    assert churn.evictions > 20
    assert counts.slot.evictions > 500
    assert counts.host.evictions > 200
