"""What students see at a stated rate of arrivals: an open loop, up to rates that the machine can't keep up with."""

import random
from collections.abc import AsyncIterator, Sequence

from benchmarks import load
from benchmarks.figures import Figure, percentiles
from benchmarks.stage import Stage

STUDENTS = 32


async def arrivals(stage: Stage) -> AsyncIterator[Figure]:
    """Latencies, batch size and refusals at each rate; every request is of a random one of many students."""
    ids = await stage.students.first(STUDENTS)

    def draw(chance: random.Random) -> load.Ask:
        number = chance.randrange(STUDENTS)
        return load.Ask(student_id=ids[number], question=load.question(number), tokens=stage.tokens)

    # As many as decode may wait, some ten seconds on two cores; who would wait longer is refused, and counted.
    rows = stage.rows
    async with stage.brain(MAX_BATCH=rows, ADAPTER_SLOTS=2 * rows, QUEUE_LIMIT=rows) as brain:
        await load.together(brain.client, load.asks(ids, tokens=1), at_once=rows)
        for rate in stage.pick(stage.options.rates, (1.0, 8.0)):
            samples = await load.arriving(
                brain.client, draw, rate=rate, seconds=stage.pick(15.0, 4.0), seed=stage.options.seed
            )
            yield _figure(rate, samples)


def _figure(rate: float, samples: Sequence[load.Sample]) -> Figure:
    answered = [sample for sample in samples if not sample.refused]
    firsts = percentiles([sample.first_ms for sample in answered])
    tokens = percentiles([sample.token_ms for sample in answered])
    totals = percentiles([sample.total_ms for sample in answered])
    return Figure(
        figure="open_loop_first_token",
        value=firsts["p50"],
        unit="ms",
        facts={
            "arrivals_per_second": rate,
            "requests": len(samples),
            "refused": len(samples) - len(answered),
            "tokens_per_second": round(load.rate_of(samples), 1),
            # Little's law over the time that replies were being written.
            "mean_batch": round(sum(sample.ended_at - sample.first_at for sample in answered) / load.span(samples), 2),
            **{f"first_token_ms_{name}": round(value, 1) for name, value in firsts.items()},
            **{f"token_ms_{name}": round(value, 1) for name, value in tokens.items()},
            **{f"total_ms_{name}": round(value, 1) for name, value in totals.items()},
            **load.facts(samples),
        },
    )
