"""What must hold whatever happens: every reply is, token for token, that of an isolated run with its adapter."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from brain_server.engine.contract import LoadedAdapter
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.base import BaseModel, load_base
from testing.load.churn import Churn, Kind, publish_students
from testing.models.random_adapters import Widths
from testing.models.reference_replies import Isolated, mismatches

REQUESTS = 2_000
STUDENTS = 50
VERSIONS = 2


@pytest.fixture(scope="module")
def small_base(small_llama: Path) -> BaseModel:
    """The default base model would compute for many minutes what this one does in one."""
    return load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")


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
            "kv_cache_bytes": 1024 * 1024,
            # The longer prompt takes three steps.
            "prefill_tokens": 24,
            "adapter_pointer_ttl_seconds": 0.5,
            # A fifth of all versions, so that they leave memory as well as slots.
            "adapter_host_bytes": len(manifests) // 5 * manifests[0].size_bytes,
        }
    )
    assert settings.max_batch == settings.adapter_slots == 4
    async with TorchEngine.open(settings, store) as engine:
        facts = await engine.wait_loaded()
        assert facts.ready, facts.reason
        churn = Churn(engine, store, students=students, seed=7)
        heard = await churn.run(REQUESTS, most=24)
        counts = engine.counts
        assert (counts.waiting, counts.running) == (0, 0)
        assert not [one for one in engine.residencies() if one.leases]

    adapters = {
        LoadedAdapter(ref=manifest.ref, sha256=manifest.sha256): (await store.fetch(manifest.ref)).weights
        for manifest in manifests
    }
    isolated = Isolated(small_base, {identity.ref: weights for identity, weights in adapters.items()})
    assert not await asyncio.to_thread(mismatches, heard, isolated, adapters=adapters)

    # All of it happened, and often.
    completed = [one.reply for one in heard if one.reply is not None]
    assert len(heard) == REQUESTS
    assert len(completed) > 0.75 * REQUESTS
    assert sum(one.expired for one in heard) > 0.01 * REQUESTS
    assert sum(one.reply is None and not one.expired for one in heard) > 0.05 * REQUESTS
    assert len({reply.adapter for reply in completed}) > 0.75 * len(manifests)
    assert Counter(one.asked.kind for one in heard if one.reply)[Kind.SCHEMA] > 0.03 * REQUESTS
    assert len({reply.text for reply in completed}) > len(manifests)
    assert churn.flips > 50
    assert churn.evictions > 20
    assert counts.slot.evictions > 500
    assert counts.host.evictions > 200
