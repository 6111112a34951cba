"""Tokens per second: one student, eight students with eight adapters, and the cost of the adapters."""

import statistics
from collections.abc import AsyncIterator

from benchmarks import load
from benchmarks.figures import Figure, Goal
from benchmarks.peft_generate import PeftGenerate
from benchmarks.rig import Brain, Rig
from benchmarks.vllm import vllm

CLASS = 8


async def students(rig: Rig) -> AsyncIterator[Figure]:
    """Measures eight simultaneous students with eight adapters, after vLLM with the same load."""
    repeats = rig.pick(3, 1)
    vllm_rate = await _vllm_rate(rig, repeats) if rig.options.vllm.exists() else None
    ids = await rig.students.first_ids(CLASS)
    requests = load.requests_of(ids, tokens=rig.tokens)
    async with rig.brain() as brain:
        await load.closed_loop(brain.client, load.requests_of(ids, tokens=8), concurrency=CLASS)
        rounds = [await load.closed_loop(brain.client, requests, concurrency=CLASS) for _ in range(repeats)]
    yield Figure(
        figure="8_students_8_adapters",
        value=statistics.median(map(load.tokens_per_second, rounds)),
        unit="tokens/s",
        baseline=vllm_rate,
        baseline_of=f"vLLM on {rig.options.device}, multi-LoRA" if vllm_rate else "no vLLM: run `make vllm`",
        goal=Goal(of="ratio", at_least=3),
        facts={"repeats": repeats, **load.facts(rounds[0])},
    )
    yield Figure(
        figure="start_to_healthy",
        value=brain.start_seconds,
        unit="s",
        goal=Goal(of="value", at_most=10),
        facts={"base_model": "in the page cache"},
    )


async def single(rig: Rig) -> AsyncIterator[Figure]:
    """Measures one student and transformers' `generate` with the same adapter, alternating."""
    repeats = rig.pick(5, 1)
    peft = PeftGenerate(rig.load_base_model(), 1, state_of=rig.students.adapter_state)
    requests = load.requests_of(await rig.students.first_ids(1), tokens=rig.tokens)
    brain_rates, peft_rates = [], []
    async with rig.brain() as brain:
        await load.closed_loop(brain.client, requests, concurrency=1)
        peft.rate([0], tokens=8)
        for _ in range(repeats):
            peft_rates.append(peft.rate([0], tokens=rig.tokens))
            samples = await load.closed_loop(brain.client, requests, concurrency=1)
            brain_rates.append(load.tokens_per_second(samples))
    yield Figure(
        figure="1_student",
        value=statistics.median(brain_rates),
        unit="tokens/s",
        baseline=statistics.median(peft_rates),
        baseline_of="transformers generate with PEFT",
        goal=Goal(of="ratio", at_least=1.5),
        facts={"repeats": repeats, **load.facts(samples)},
    )


async def adapter_cost(rig: Rig) -> AsyncIterator[Figure]:
    """Measures a class with its adapters and without, alternating."""
    async with rig.brain() as brain:
        async for figure in cost_of_adapters(rig, brain, rows=CLASS, repeats=rig.pick(7, 1)):
            yield figure


async def cost_of_adapters(rig: Rig, brain: Brain, *, rows: int, repeats: int) -> AsyncIterator[Figure]:
    """Measures how much slower a batch of `rows` requests is with adapters than without.

    The cost is the median over pairs of runs. The runs of a pair follow each other, so a disturbance of the machine
    slows both; pairs alternate in which run comes first.
    """
    ids = await rig.students.first_ids(rows)
    with_adapters = load.requests_of(ids, tokens=rig.tokens)
    without_adapters = load.requests_of(ids, tokens=rig.tokens, base_only=True)
    await load.closed_loop(brain.client, load.requests_of(ids, tokens=8), concurrency=rows)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(repeats):
        for has_adapters in (True, False) if number % 2 else (False, True):
            requests = with_adapters if has_adapters else without_adapters
            samples = await load.closed_loop(brain.client, requests, concurrency=rows)
            rates[has_adapters].append(load.tokens_per_second(samples))
    ratios = [adapter_rate / base_rate for adapter_rate, base_rate in zip(rates[True], rates[False], strict=True)]
    yield Figure(
        figure=f"rate_at_batch_{rows}",
        value=statistics.median(rates[True]),
        unit="tokens/s",
        baseline=statistics.median(rates[False]),
        baseline_of="the same brain without adapters",
        facts={"repeats": repeats, **load.facts(samples)},
    )
    yield Figure(
        figure=f"adapter_cost_at_batch_{rows}",
        value=100 * (1 - statistics.median(ratios)),
        unit="%",
        goal=Goal(of="value", at_most=8),
        facts={"repeats": repeats, "of_pairs": [round(100 * (1 - ratio), 1) for ratio in ratios]},
    )


async def _vllm_rate(rig: Rig, repeats: int) -> float:
    async with vllm(rig, CLASS) as server:
        await server.rate(CLASS, tokens=8)
        return statistics.median([await server.rate(CLASS, tokens=rig.tokens) for _ in range(repeats)])
