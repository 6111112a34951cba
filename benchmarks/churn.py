"""Whether any reply ever holds a token decoded with another student's adapter, over very many short requests.

    python -m benchmarks.churn [--requests 100000] [--students 100] [--base-model small] [--seed 7] [--out FILE]

Requests come in bursts, with cancellations, short deadlines, new versions and evictions, to an engine with four rows
and four slots on a real store. Every reply is compared with what transformers and PEFT decode for the request alone, in
fp32. Prints a JSON line that tells the machine, then one per stretch of requests, which counts all
before it too; keeps the first and the last in the file. Ends with 1 on a mismatch.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.figures import Figure, Goal, Results
from brain_server.engine.contract import LoadedAdapter
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.manifest import Manifest
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.base import BaseModel, load_base
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.weights import fetch
from testing.load.churn import Churn, ReplyRecord, publish_students
from testing.models.random_adapters import Widths
from testing.models.reference_replies import IsolatedDecoder, mismatches
from testing.models.small_models import write_small_llama
from testing.parts.stores import seaweed
from testing.waiting import until_loaded

Judge = Callable[[Sequence[ReplyRecord]], Sequence[str]]

_STRETCH = 5_000
_MOST_AT_ONCE = 24
_BUCKET = "churn"


def main() -> int:
    """Prints the figures; 1 if a reply was wrong."""
    parser = argparse.ArgumentParser(description="Token-exactness under churn.")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--students", type=int, default=100)
    parser.add_argument("--base-model", default="small", help="'small' has random weights and computes next to nothing")
    parser.add_argument("--seed", type=int, default=7)
    out = Path("benchmarks/results/serving-churn.jsonl")
    parser.add_argument("--out", type=Path, default=out, help="file of the results")
    return asyncio.run(_measure(parser.parse_args()))


async def _measure(args: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "s3").mkdir()
        s3 = await stack.enter_async_context(seaweed(folder / "s3"))
        # Where boto3 looks for credentials.
        os.environ.update(s3.env)
        blobs = S3Blobs(bucket=_BUCKET, endpoint_url=s3.url, create_bucket=True)
        store = AdapterStore(await stack.enter_async_context(blobs))
        base = _base(args.base_model, folder)
        widths = Widths.of(base.model.config)
        students = await publish_students(
            store, count=args.students, versions=2, widths=widths, base_digest=base.digest
        )
        manifests = [manifest for versions in students.values() for manifest in versions]
        settings = _settings(base, host_bytes=len(manifests) // 5 * manifests[0].size_bytes)
        engine = await stack.enter_async_context(TorchEngine.open(settings, store))
        loaded = await until_loaded(engine)
        assert loaded.ready, loaded.reason
        results = Results(args.out, conditions={"base_model": args.base_model, "dtype": "float32", "seed": args.seed})
        churn = Churn(engine, store, students=students, seed=args.seed)
        judge = await _judge(base, store, manifests)
        facts: dict[str, int | float] = {"adapters": len(manifests), "slots": settings.adapter_slots}
        async for counted in _stretches(args.requests, engine, churn=churn, judge=judge):
            facts |= counted
            print(json.dumps(facts), flush=True)
        figure = Figure(
            figure="replies_that_hold_a_wrong_token",
            value=facts["mismatches"],
            unit="replies",
            goal=Goal(of="value", at_most=0),
            facts=facts,
        )
        results.add(figure)
    return 0 if figure.met and not facts["left_behind"] else 1


async def _judge(base: BaseModel, store: AdapterStore, manifests: Sequence[Manifest]) -> Judge:
    """Tells the replies that are not what transformers and PEFT make of the request alone."""
    adapters = {
        LoadedAdapter(ref=item.ref, sha256=item.sha256): (await store.fetch(item.ref)).weights for item in manifests
    }
    decoder = IsolatedDecoder(base, {identity.ref: weights for identity, weights in adapters.items()})
    return lambda records: mismatches(records, decoder, adapters=adapters)


async def _stretches(
    requests: int, engine: TorchEngine, *, churn: Churn, judge: Judge
) -> AsyncIterator[dict[str, int | float]]:
    """What happened so far, after each stretch of requests."""
    total: Counter[str] = Counter()
    seconds = 0.0
    while total["requests"] < requests:
        began_at = time.monotonic()
        records = await churn.run(min(_STRETCH, requests - total["requests"]), max_concurrent=_MOST_AT_ONCE)
        seconds += time.monotonic() - began_at
        total.update(_count_outcomes(records))
        total["mismatches"] += len(await asyncio.to_thread(judge, records))
        counts = engine.counts
        # Waiting, running and leased; nobody is there between two stretches.
        total["left_behind"] += counts.waiting + counts.running + sum(item.leases for item in engine.residencies())
        yield {
            **total,
            "seconds": round(seconds, 1),
            "slot_evictions": counts.slot.evictions,
            "host_evictions": counts.host.evictions,
            "version_flips": churn.activations,
        }


def _base(name: str, folder: Path) -> BaseModel:
    """The reference's copy of the base model."""
    cache = Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models"))
    if name == "small":
        tokenizer = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, cache).path)
        name = str(write_small_llama(folder / "small-llama", tokenizer))
    return load_base(name, cache_dir=cache, device="cpu", dtype="float32")


def _settings(base: BaseModel, *, host_bytes: int) -> EngineSettings:
    """Slots for a few adapters of many, memory for a fifth of them, and prompts that take several steps."""
    return EngineSettings(
        base_model=base.name,
        model_cache_dir=Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models")),
        device="cpu",
        dtype="float32",
        queue_limit=64,
        student_limit=64,
        max_batch=4,
        adapter_slots=4,
        kv_cache_bytes=64 << 20,
        prefill_tokens=24,
        adapter_pointer_ttl_seconds=0.5,
        adapter_host_bytes=host_bytes,
    )


def _count_outcomes(records: Sequence[ReplyRecord]) -> dict[str, int]:
    completed = sum(record.reply is not None for record in records)
    expired = sum(record.has_expired for record in records)
    return {
        "requests": len(records),
        "completed": completed,
        "cancelled": len(records) - completed - expired,
        "expired": expired,
    }


if __name__ == "__main__":
    raise SystemExit(main())
