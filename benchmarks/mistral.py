"""The shape of Mistral-7B on a GPU: how near one request comes to the memory's limit, and what a class comes to.

The weights are random, as speed does not depend on them, so that nothing has to be downloaded; the vocabulary is that
of the default base model's tokenizer, 17,152 words more than Mistral's, and counted as read. Needs a GPU of 24 GB and
30 GB of disk. Of this shape it has not been run yet, for want of one; of a small shape it has, on a CPU.
"""

import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, MistralConfig, MistralForCausalLM

from benchmarks import load
from benchmarks.adapters import Students
from benchmarks.figures import Figure, Goal
from benchmarks.stage import Stage
from benchmarks.throughput import cost_of_adapters
from mesh.lm.weights import fetch
from testing.models.random_adapters import Widths

CLASS = 64
_COPY_BYTES = 2 * 1024**3
# 512 tokens for each of the class.
_CACHE_BYTES = 4 * 1024**3


async def mistral(stage: Stage) -> AsyncIterator[Figure]:
    """One request beside copy bandwidth over weight bytes, then 64 students with 64 adapters beside one request."""
    folder = stage.folder / "mistral"
    weight_bytes = _save_random(stage.files.path, folder, device=stage.options.device)
    limit = _copy_bandwidth(stage.options.device) / weight_bytes
    files = fetch(str(folder), stage.folder / "digests")
    widths = Widths.of(AutoConfig.from_pretrained(folder))
    # Other students than the stage's, whose adapters are of another model.
    shaped = replace(stage, files=files, tenant="mistral")
    shaped = replace(shaped, students=Students(shaped.store, widths=widths, base_digest=files.digest))
    repeats = stage.pick(5, 1)
    requests = load.asks(await shaped.students.first(1), tokens=stage.tokens)
    async with shaped.brain(MAX_BATCH=CLASS, ADAPTER_SLOTS=CLASS, KV_CACHE_BYTES=_CACHE_BYTES) as brain:
        await load.together(brain.client, requests, at_once=1)
        rounds = [await load.together(brain.client, requests, at_once=1) for _ in range(repeats)]
        single_rate = statistics.median(map(load.rate_of, rounds))
        yield Figure(
            figure="mistral_7b_1_student",
            value=single_rate,
            unit="tokens/s",
            baseline=limit,
            baseline_of="copy bandwidth over weight bytes",
            goal=Goal(of="ratio", at_least=0.6),
            facts={"weight_gb": round(weight_bytes / 1e9, 2), **load.facts(rounds[0])},
        )
        async for figure in cost_of_adapters(shaped, brain, rows=CLASS, repeats=repeats):
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
    """Writes a random model with a tokenizer beside it; returns the bytes that are read for a token."""
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
    # Of the table of embeddings a token reads one row.
    read_bytes = sum(parameter.nbytes for parameter in model.parameters()) - model.model.embed_tokens.weight.nbytes
    del model
    # The brain needs the memory, and is another process.
    torch.cuda.empty_cache()
    return int(read_bytes)


def _copy_bandwidth(device: str) -> float:
    """Bytes a second that pass the device's memory while a large block is copied: each is read once, written once."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        began_at = time.perf_counter()
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began_at)
    bandwidth = 2 * _COPY_BYTES / statistics.median(times)
    del source, target
    torch.cuda.empty_cache()
    return bandwidth
