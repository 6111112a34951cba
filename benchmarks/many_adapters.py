"""Many adapters: more in the store, and more in use, than the brain has slots."""

import random
import statistics
from collections.abc import AsyncIterator, Sequence

from benchmarks import load
from benchmarks.figures import Figure, Goal, percentiles
from benchmarks.peft_generate import PeftGenerate
from benchmarks.rig import Brain, Rig


async def switching(rig: Rig) -> AsyncIterator[Figure]:
    """Measures one request from each of 100 students, and a PEFT model that switches adapters between requests."""
    count, rows = rig.pick(100, 4), rig.rows
    slots = 2 * rows
    ids = await rig.students.first_ids(count)
    peft = PeftGenerate(rig.load_base_model(), count, state_of=rig.students.adapter_state)
    sample_numbers = random.Random(rig.options.seed).sample(range(count), rig.pick(6, 2))
    halves = sample_numbers[: len(sample_numbers) // 2], sample_numbers[len(sample_numbers) // 2 :]
    async with rig.brain(MAX_BATCH=rows, ADAPTER_SLOTS=slots) as brain:
        await load.closed_loop(brain.client, load.requests_of(ids, tokens=1), concurrency=rows)
        peft.rate(sample_numbers[:1], tokens=8)
        rate_before = peft.rate(halves[0], tokens=rig.tokens)
        samples = await load.closed_loop(brain.client, load.requests_of(ids, tokens=rig.tokens), concurrency=rows)
        rate_after = peft.rate(halves[1], tokens=rig.tokens)
    switches = [peft.switch(number) for number in sample_numbers]
    yield Figure(
        figure=f"{count}_adapters",
        value=load.tokens_per_second(samples),
        unit="tokens/s",
        # The faster of the two runs, because a disturbance of the machine can only slow a run down.
        baseline=max(rate_before, rate_after),
        baseline_of=f"PEFT set_adapter and generate, {count} adapters loaded",
        goal=Goal(of="ratio", at_least=8 if rig.options.device == "cpu" else 32),
        facts={"slots": slots, "at_once": rows, "requests_of_baseline": len(sample_numbers), **load.facts(samples)},
    )
    yield Figure(
        figure="peft_switch",
        value=statistics.median(switches),
        unit="ms",
        facts={"adapters": count, "what": "set_adapter alone"},
    )


async def registered(rig: Rig) -> AsyncIterator[Figure]:
    """Measures throughput while the store grows, with the same slots and the same memory.

    With many students, most requests are the first of their student, whose adapter comes from S3. The brain is
    saturated, as in the paper behind the target (Sheng et al., "S-LoRA", 2023): two callers per row send one request
    after another, so a free row always has a waiting request.
    """
    counts = rig.pick(rig.options.registered, (5, 40))
    rows, slots, callers = rig.rows, 2 * rig.rows, 2 * rig.rows
    repeats, requests = rig.pick(2, 1), rig.pick(4 * rows, 2 * rows)
    chance = random.Random(rig.options.seed)
    rounds: dict[int, list[list[load.Sample]]] = {count: [] for count in counts}
    ids = await rig.students.first_ids(max(counts))
    async with rig.brain(MAX_BATCH=rows, ADAPTER_SLOTS=slots) as brain:
        await load.closed_loop(brain.client, load.requests_of(ids[: counts[0]], tokens=8), concurrency=rows)
        for _ in range(repeats):
            for count, rounds_of_count in rounds.items():
                student_ids = _draw_students(ids[:count], requests, chance)
                batch = load.requests_of(student_ids, tokens=rig.tokens)
                rounds_of_count.append(await load.closed_loop(brain.client, batch, concurrency=callers))
    rate_with_fewest = statistics.median(map(load.tokens_per_second, rounds[counts[0]]))
    for count, rounds_of_count in rounds.items():
        yield Figure(
            figure="registered_adapters",
            value=statistics.median(map(load.tokens_per_second, rounds_of_count)),
            unit="tokens/s",
            baseline=rate_with_fewest,
            baseline_of=f"{counts[0]} adapters registered",
            goal=Goal(of="ratio", at_least=0.945) if count == counts[-1] else None,
            facts={
                "adapters": count,
                "slots": slots,
                "callers": callers,
                "repeats": repeats,
                "of_repeats": [round(load.tokens_per_second(samples), 1) for samples in rounds_of_count],
                **_first_token_facts(rounds_of_count),
                **load.facts(rounds_of_count[0]),
            },
        )


async def working_set(rig: Rig) -> AsyncIterator[Figure]:
    """Measures the first token while requests cycle through fewer and through more adapters than there are slots.

    With more adapters than slots, the next adapter is always the least recently used one: the worst case of a cache.
    """
    slots = 8
    sizes = rig.pick((4, 8, 16, 32, 64), (4, 8, 16))
    repeats, requests = rig.pick(2, 1), rig.pick(4 * slots, 2 * slots)
    rounds: dict[int, list[list[load.Sample]]] = {size: [] for size in sizes}
    async with rig.brain(MAX_BATCH=slots, ADAPTER_SLOTS=slots) as brain:
        for _ in range(repeats):
            for size, rounds_of_size in rounds.items():
                ids = await rig.students.first_ids(size)
                # Fetches all adapters from S3 before the measurement; the last ones of the set stay in the slots.
                await load.closed_loop(brain.client, load.requests_of(ids, tokens=1), concurrency=slots)
                cycled_ids = [ids[number % size] for number in range(requests)]
                rounds_of_size.append(await _send_short_requests(brain, cycled_ids, concurrency=slots))
    first_token_ms_in_slots = _median_first_token_ms(rounds[slots])
    for size, rounds_of_size in rounds.items():
        yield Figure(
            figure="working_set_first_token",
            value=_median_first_token_ms(rounds_of_size),
            unit="ms",
            baseline=first_token_ms_in_slots,
            baseline_of="a working set as large as the slots",
            goal=Goal(of="ratio", at_most=3) if size == 2 * slots else None,
            facts={
                "adapters": size,
                "slots": slots,
                "repeats": repeats,
                "tokens_per_second": round(statistics.median(map(load.tokens_per_second, rounds_of_size)), 1),
                **_first_token_facts(rounds_of_size),
                **load.facts(rounds_of_size[0]),
            },
        )


async def _send_short_requests(brain: Brain, ids: Sequence[str], *, concurrency: int) -> list[load.Sample]:
    # Short replies change the adapters in the slots more often.
    return await load.closed_loop(brain.client, load.requests_of(ids, tokens=20), concurrency=concurrency)


def _draw_students(ids: Sequence[str], requests: int, chance: random.Random) -> list[str]:
    """Returns the student of each request, in random order; no student repeats before all others had a turn."""
    student_ids: list[str] = []
    while len(student_ids) < requests:
        student_ids += chance.sample(ids, len(ids))
    return student_ids[:requests]


def _median_first_token_ms(rounds: Sequence[Sequence[load.Sample]]) -> float:
    return statistics.median(sample.first_token_ms for samples in rounds for sample in samples)


def _first_token_facts(rounds: Sequence[Sequence[load.Sample]]) -> dict[str, object]:
    times = [sample.first_token_ms for samples in rounds for sample in samples]
    return {f"first_token_ms_{name}": round(value, 1) for name, value in percentiles(times).items()}
