"""How many tokens a second: one student, eight students with an adapter each, and what the adapters cost."""

import statistics
from collections.abc import AsyncIterator

from benchmarks import load
from benchmarks.baselines import PeftGenerate
from benchmarks.figures import Figure, Goal
from benchmarks.stage import Brain, Stage
from benchmarks.vllm import vllm

CLASS = 8


async def students(stage: Stage) -> AsyncIterator[Figure]:
    """Eight students with eight adapters at once, and vLLM with the same, which has ended before the brain starts."""
    repeats = stage.pick(3, 1)
    peer = await _of_vllm(stage, repeats) if stage.options.vllm.exists() else None
    ids = await stage.students.first(CLASS)
    asks = load.asks(ids, tokens=stage.tokens)
    async with stage.brain() as brain:
        await load.together(brain.client, load.asks(ids, tokens=8), at_once=CLASS)
        rounds = [await load.together(brain.client, asks, at_once=CLASS) for _ in range(repeats)]
    yield Figure(
        figure="8_students_8_adapters",
        value=statistics.median(map(load.rate_of, rounds)),
        unit="tokens/s",
        baseline=peer,
        baseline_of=f"vLLM on {stage.options.device}, multi-LoRA" if peer else "none: `make vllm` makes vLLM's venv",
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


async def single(stage: Stage) -> AsyncIterator[Figure]:
    """One student, beside transformers' `generate` with the same adapter, in turns."""
    repeats = stage.pick(5, 1)
    peft = PeftGenerate(stage.base(), 1, state_of=stage.students.state)
    asks = load.asks(await stage.students.first(1), tokens=stage.tokens)
    ours, theirs = [], []
    async with stage.brain() as brain:
        await load.together(brain.client, asks, at_once=1)
        peft.rate([0], tokens=8)
        for _ in range(repeats):
            theirs.append(peft.rate([0], tokens=stage.tokens))
            samples = await load.together(brain.client, asks, at_once=1)
            ours.append(load.rate_of(samples))
    yield Figure(
        figure="1_student",
        value=statistics.median(ours),
        unit="tokens/s",
        baseline=statistics.median(theirs),
        baseline_of="transformers generate with PEFT",
        goal=Goal(of="ratio", at_least=1.5),
        facts={"repeats": repeats, **load.facts(samples)},
    )


async def adapter_cost(stage: Stage) -> AsyncIterator[Figure]:
    """The same class with its adapters and without, in turns."""
    async with stage.brain() as brain:
        async for figure in cost_of_adapters(stage, brain, rows=CLASS, repeats=stage.pick(7, 1)):
            yield figure


async def cost_of_adapters(stage: Stage, brain: Brain, *, rows: int, repeats: int) -> AsyncIterator[Figure]:
    """What adapters cost at a batch of so many rows.

    The median over pairs that were run one after the other, either first in turn: what else happens on the machine
    slows both of a pair.
    """
    ids = await stage.students.first(rows)
    with_adapters = load.asks(ids, tokens=stage.tokens)
    without = load.asks(ids, tokens=stage.tokens, base_only=True)
    await load.together(brain.client, load.asks(ids, tokens=8), at_once=rows)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(repeats):
        for adapted in (True, False) if number % 2 else (False, True):
            samples = await load.together(brain.client, with_adapters if adapted else without, at_once=rows)
            rates[adapted].append(load.rate_of(samples))
    shares = [ours / base for ours, base in zip(rates[True], rates[False], strict=True)]
    yield Figure(
        figure=f"rate_at_batch_{rows}",
        value=statistics.median(rates[True]),
        unit="tokens/s",
        baseline=statistics.median(rates[False]),
        baseline_of="the base model alone, same brain",
        facts={"repeats": repeats, **load.facts(samples)},
    )
    yield Figure(
        figure=f"adapter_cost_at_batch_{rows}",
        value=100 * (1 - statistics.median(shares)),
        unit="%",
        goal=Goal(of="value", at_most=8),
        facts={"repeats": repeats, "of_pairs": [round(100 * (1 - share), 1) for share in shares]},
    )


async def _of_vllm(stage: Stage, repeats: int) -> float:
    async with vllm(stage, CLASS) as peer:
        await peer.rate(CLASS, tokens=8)
        return statistics.median([(await peer.rate(CLASS, tokens=stage.tokens))[0] for _ in range(repeats)])
