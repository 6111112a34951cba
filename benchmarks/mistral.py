"""A model of Mistral-7B's shape on a GPU: speed of one request against the memory bandwidth, and of a class.

The weights are random, so nothing has to be downloaded; speed does not depend on their values. The vocabulary is that
of the default base model's tokenizer, with 17,152 more tokens than Mistral's; they count among the bytes read. Needs a
GPU with 24 GB of memory, and 30 GB of disk. It has run with a small shape on a CPU, but not yet with this shape.
"""

import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, MistralConfig, MistralForCausalLM

from benchmarks import load
from benchmarks.figures import Figure, Goal
from benchmarks.published_students import PublishedStudents
from benchmarks.rig import Rig
from benchmarks.throughput import cost_of_adapters
from mesh.main_brain.files import fetch_main_brain
from testing.models.random_adapters import Widths

CLASS = 64
_COPY_BYTES = 2 * 1024**3
# 512 tokens per student of the class.
_CACHE_BYTES = 4 * 1024**3


async def mistral(rig: Rig) -> AsyncIterator[Figure]:
    """Measures one request against copy bandwidth over weight bytes, then 64 students against one request."""
    folder = rig.folder / "mistral"
    weight_bytes = _save_random(rig.files.path, folder, device=rig.options.device)
    limit = _copy_bandwidth(rig.options.device) / weight_bytes
    files = fetch_main_brain(str(folder), rig.folder / "digests")
    widths = Widths.of(AutoConfig.from_pretrained(folder))
    # The rig's own students have adapters for another base model.
    mistral_rig = replace(rig, files=files, tenant="mistral")
    students = PublishedStudents(mistral_rig.store, widths=widths, base_digest=files.digest)
    mistral_rig = replace(mistral_rig, students=students)
    repeats = rig.pick(5, 1)
    requests = load.requests_of(await students.first_ids(1), tokens=rig.tokens)
    async with mistral_rig.brain(MAX_BATCH=CLASS, ADAPTER_SLOTS=CLASS, KV_CACHE_BYTES=_CACHE_BYTES) as brain:
        await load.closed_loop(brain.client, requests, concurrency=1)
        rounds = [await load.closed_loop(brain.client, requests, concurrency=1) for _ in range(repeats)]
        single_rate = statistics.median(map(load.tokens_per_second, rounds))
        yield Figure(
            figure="mistral_7b_1_student",
            value=single_rate,
            unit="tokens/s",
            baseline=limit,
            baseline_of="copy bandwidth over weight bytes",
            goal=Goal(of="ratio", at_least=0.6),
            facts={"weight_gb": round(weight_bytes / 1e9, 2), **load.facts(rounds[0])},
        )
        async for figure in cost_of_adapters(mistral_rig, brain, rows=CLASS, repeats=repeats):
            yield figure
            if figure.unit == "tokens/s":
                yield Figure(
                    figure="mistral_7b_64_students_64_adapters",
                    value=figure.value,
                    unit="tokens/s",
                    baseline=single_rate,
                    baseline_of="one request",
                    goal=Goal(of="ratio", at_least=30),
                    facts=figure.facts,
                )


def _save_random(tokenizer_from: Path, folder: Path, *, device: str) -> int:
    """Writes a random model and a tokenizer to a folder; returns the bytes that decoding reads per token."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sliding_window=None,
    )
    with torch.device(device):
        model = MistralForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # A token reads only one row of the embedding table.
    read_bytes = sum(parameter.nbytes for parameter in model.parameters()) - model.model.embed_tokens.weight.nbytes
    del model
    # The brain, another process, needs the memory.
    torch.cuda.empty_cache()
    return int(read_bytes)


def _copy_bandwidth(device: str) -> float:
    """Returns the bytes per second that copying a large block reads and writes in the device's memory."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        started_at = time.perf_counter()
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started_at)
    bandwidth = 2 * _COPY_BYTES / statistics.median(times)
    del source, target
    torch.cuda.empty_cache()
    return bandwidth
