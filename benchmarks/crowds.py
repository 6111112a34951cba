"""Many adapters: more registered than there are slots, more in use than there are slots."""

import random
import statistics
from collections.abc import AsyncIterator, Sequence

from benchmarks import load
from benchmarks.baselines import PeftGenerate
from benchmarks.figures import Figure, Goal, percentiles
from benchmarks.stage import Brain, Stage


async def switching(stage: Stage) -> AsyncIterator[Figure]:
    """A request of each of a hundred students, beside one PEFT model that switches adapters between requests."""
    count, rows = stage.pick(100, 4), stage.rows
    slots = 2 * rows
    ids = await stage.students.first(count)
    peft = PeftGenerate(stage.base(), count, state_of=stage.students.state)
    sample_numbers = random.Random(stage.options.seed).sample(range(count), stage.pick(6, 2))
    halves = sample_numbers[: len(sample_numbers) // 2], sample_numbers[len(sample_numbers) // 2 :]
    async with stage.brain(MAX_BATCH=rows, ADAPTER_SLOTS=slots) as brain:
        await load.together(brain.client, load.asks(ids, tokens=1), at_once=rows)
        peft.rate(sample_numbers[:1], tokens=8)
        before = peft.rate(halves[0], tokens=stage.tokens)
        samples = await load.together(brain.client, load.asks(ids, tokens=stage.tokens), at_once=rows)
        after = peft.rate(halves[1], tokens=stage.tokens)
    switches = [peft.switch(number) for number in sample_numbers]
    yield Figure(
        figure=f"{count}_adapters",
        value=load.rate_of(samples),
        unit="tokens/s",
        # The better of the two, as what else happens on the machine only slows.
        baseline=max(before, after),
        baseline_of=f"PEFT set_adapter and generate, {count} adapters loaded",
        goal=Goal(of="ratio", at_least=8 if stage.options.device == "cpu" else 32),
        facts={"slots": slots, "at_once": rows, "requests_of_baseline": len(sample_numbers), **load.facts(samples)},
    )
    yield Figure(
        figure="peft_switch",
        value=statistics.median(switches),
        unit="ms",
        facts={"adapters": count, "what": "set_adapter alone"},
    )


async def registered(stage: Stage) -> AsyncIterator[Figure]:
    """Throughput while the number of students in the store grows and slots and memory do not.

    Of many students most are met for the first time, so that their adapters come from S3. The brain is saturated, as
    where the target comes from (Sheng et al., "S-LoRA", 2023): two callers per row send one request after
    another, so that a free row always has a waiting request.
    """
    counts = stage.pick(stage.options.registered, (5, 40))
    rows, slots, callers = stage.rows, 2 * stage.rows, 2 * stage.rows
    repeats, requests = stage.pick(2, 1), stage.pick(4 * rows, 2 * rows)
    chance = random.Random(stage.options.seed)
    rounds: dict[int, list[list[load.Sample]]] = {count: [] for count in counts}
    await stage.students.first(max(counts))
    async with stage.brain(MAX_BATCH=rows, ADAPTER_SLOTS=slots) as brain:
        ids = await stage.students.first(counts[0])
        await load.together(brain.client, load.asks(ids, tokens=8), at_once=rows)
        for _ in range(repeats):
            for count, rounds_of_count in rounds.items():
                student_ids = _draw_students(await stage.students.first(count), requests, chance)
                rounds_of_count.append(
                    await load.together(brain.client, load.asks(student_ids, tokens=stage.tokens), at_once=callers)
                )
    few = statistics.median(map(load.rate_of, rounds[counts[0]]))
    for count, rounds_of_count in rounds.items():
        last = count == counts[-1]
        yield Figure(
            figure="registered_adapters",
            value=statistics.median(map(load.rate_of, rounds_of_count)),
            unit="tokens/s",
            baseline=few,
            baseline_of=f"{counts[0]} adapters registered",
            goal=Goal(of="ratio", at_least=0.945) if last else None,
            facts={
                "adapters": count,
                "slots": slots,
                "callers": callers,
                "repeats": repeats,
                "of_repeats": [round(load.rate_of(samples), 1) for samples in rounds_of_count],
                **_first_token(rounds_of_count),
                **load.facts(rounds_of_count[0]),
            },
        )


async def working_set(stage: Stage) -> AsyncIterator[Figure]:
    """Adapters that are in use in turn, up to the slots and past them: where a cache would fall off a cliff.

    Requests go round the set, so that beyond the slots the next adapter is always the least recently used one.
    """
    slots = 8
    sizes = stage.pick((4, 8, 16, 32, 64), (4, 8, 16))
    repeats, requests = stage.pick(2, 1), stage.pick(4 * slots, 2 * slots)
    rounds: dict[int, list[list[load.Sample]]] = {size: [] for size in sizes}
    async with stage.brain(MAX_BATCH=slots, ADAPTER_SLOTS=slots) as brain:
        for _ in range(repeats):
            for size, rounds_of_size in rounds.items():
                ids = await stage.students.first(size)
                # Fetched before it is measured, and whoever is in a slot then is the last of the set.
                await load.together(brain.client, load.asks(ids, tokens=1), at_once=slots)
                going_round = [ids[number % size] for number in range(requests)]
                rounds_of_size.append(await _short(brain, going_round, at_once=slots))
    in_cache = _median_first(rounds[slots])
    for size, rounds_of_size in rounds.items():
        yield Figure(
            figure="working_set_first_token",
            value=_median_first(rounds_of_size),
            unit="ms",
            baseline=in_cache,
            baseline_of="a working set as large as the slots",
            goal=Goal(of="ratio", at_most=3) if size == 2 * slots else None,
            facts={
                "adapters": size,
                "slots": slots,
                "repeats": repeats,
                "tokens_per_second": round(statistics.median(map(load.rate_of, rounds_of_size)), 1),
                **_first_token(rounds_of_size),
                **load.facts(rounds_of_size[0]),
            },
        )


async def _short(brain: Brain, ids: Sequence[str], *, at_once: int) -> list[load.Sample]:
    # Short replies, so that adapters come and go as often as they can.
    return await load.together(brain.client, load.asks(ids, tokens=20), at_once=at_once)


def _draw_students(ids: Sequence[str], requests: int, chance: random.Random) -> list[str]:
    """So many students, in a random order in which all come before any comes again."""
    student_ids: list[str] = []
    while len(student_ids) < requests:
        student_ids += chance.sample(ids, len(ids))
    return student_ids[:requests]


def _median_first(rounds: Sequence[Sequence[load.Sample]]) -> float:
    return statistics.median(sample.first_ms for samples in rounds for sample in samples)


def _first_token(rounds: Sequence[Sequence[load.Sample]]) -> dict[str, object]:
    times = [sample.first_ms for samples in rounds for sample in samples]
    return {f"first_token_ms_{name}": round(value, 1) for name, value in percentiles(times).items()}
