"""Checks that no reply holds a token decoded with another student's adapter, over 100,000 short requests.

    python -m benchmarks.churn [--requests 100000] [--students 100] [--base-model small] [--seed 7] [--out FILE]

Requests arrive in bursts, with cancellations, short deadlines, new versions and evictions, at an engine with four rows
and four slots on a real store. All text received is compared with the reply that transformers and PEFT decode for the
same request alone, in fp32. Prints a JSON line that describes the machine, then the running totals every 5,000
requests; the file holds the first and the last line. Exits with status 1 on a mismatch.
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
from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.main_brain.base import BaseModel, load_base
from testing.load.churn import Churn, ReplyRecord, publish_students
from testing.models.random_adapters import Widths
from testing.models.reference_replies import IsolatedDecoder, mismatches
from testing.models.small_models import write_small_llama
from testing.parts.stores import seaweed
from testing.waiting import until_loaded

MismatchFinder = Callable[[Sequence[ReplyRecord]], Sequence[str]]

_REPORT_EVERY = 5_000
_MAX_CONCURRENCY = 24
_BUCKET = "churn"


def main() -> int:
    """Prints the totals; returns 1 if a reply is wrong or a request left something behind."""
    parser = argparse.ArgumentParser(description="Checks that replies are exact while adapters change.")
    parser.add_argument("--requests", type=int, default=100_000, help="number of requests")
    parser.add_argument("--students", type=int, default=100, help="number of students, with two versions each")
    parser.add_argument("--base-model", default="small", help="name of a base model; 'small' is tiny and random")
    parser.add_argument("--seed", type=int, default=7, help="seed of the requests and of all events")
    out = Path("benchmarks/results/serving-churn.jsonl")
    parser.add_argument("--out", type=Path, default=out, help="file for the results")
    return asyncio.run(_measure(parser.parse_args()))


async def _measure(args: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "s3").mkdir()
        s3 = await stack.enter_async_context(seaweed(folder / "s3"))
        # boto3 reads its credentials from the environment.
        os.environ.update(s3.env)
        blobs = S3Blobs(bucket=_BUCKET, endpoint_url=s3.url, create_bucket=True)
        store = AdapterStore(await stack.enter_async_context(blobs))
        base = _load_base_model(args.base_model, folder)
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
        find_mismatches = await _mismatch_finder(base, store, manifests)
        facts: dict[str, int | float] = {"adapters": len(manifests), "slots": settings.adapter_slots}
        async for totals in _running_totals(args.requests, engine, churn=churn, find_mismatches=find_mismatches):
            facts |= totals
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


async def _mismatch_finder(base: BaseModel, store: AdapterStore, manifests: Sequence[Manifest]) -> MismatchFinder:
    """Returns a function that lists the replies that differ from those of transformers and PEFT."""
    adapters = {
        LoadedAdapter(ref=manifest.ref, sha256=manifest.sha256): (await store.fetch(manifest.ref)).weights
        for manifest in manifests
    }
    decoder = IsolatedDecoder(base, {identity.ref: weights for identity, weights in adapters.items()})
    return lambda records: mismatches(records, decoder, adapters=adapters)


async def _running_totals(
    requests: int, engine: TorchEngine, *, churn: Churn, find_mismatches: MismatchFinder
) -> AsyncIterator[dict[str, int | float]]:
    """Sends the requests, and yields the counts of all requests so far every `_REPORT_EVERY` requests."""
    total: Counter[str] = Counter()
    seconds = 0.0
    while total["requests"] < requests:
        started_at = time.monotonic()
        records = await churn.run(min(_REPORT_EVERY, requests - total["requests"]), max_concurrent=_MAX_CONCURRENCY)
        seconds += time.monotonic() - started_at
        total.update(_count_outcomes(records))
        total["mismatches"] += len(await asyncio.to_thread(find_mismatches, records))
        counts = engine.counts
        # No request is in progress now, so nothing may be waiting, running or leased.
        total["left_behind"] += (
            counts.waiting + counts.running + sum(adapter.leases for adapter in engine.residencies())
        )
        yield {
            **total,
            "seconds": round(seconds, 1),
            "slot_evictions": counts.slot.evictions,
            "host_evictions": counts.host.evictions,
            "version_flips": churn.activations,
        }


def _load_base_model(name: str, folder: Path) -> BaseModel:
    """Loads the base model for the reference replies."""
    cache = Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models"))
    if name == "small":
        tokenizer = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, cache).path)
        name = str(write_small_llama(folder / "small-llama", tokenizer))
    return load_base(name, cache_dir=cache, device="cpu", dtype="float32")


def _settings(base: BaseModel, *, host_bytes: int) -> EngineSettings:
    """Returns settings with slots for few adapters, host memory for a fifth, and prompts prefilled in several steps."""
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
