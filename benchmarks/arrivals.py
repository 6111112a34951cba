"""Latency that students see at fixed rates of arrival: an open loop, up to rates above the brain's capacity."""

import random
from collections.abc import AsyncIterator, Sequence

from benchmarks import load
from benchmarks.figures import Figure, percentiles
from benchmarks.rig import Rig

STUDENTS = 32


async def arrivals(rig: Rig) -> AsyncIterator[Figure]:
    """Measures latencies, batch size and refusals at each rate; a random student sends each request."""
    ids = await rig.students.first_ids(STUDENTS)

    def draw(chance: random.Random) -> load.Request:
        number = chance.randrange(STUDENTS)
        return load.Request(student_id=ids[number], question=load.question(number), tokens=rig.tokens)

    # The queue holds one batch, which is about ten seconds of work on two cores. Requests beyond it are refused.
    rows = rig.rows
    async with rig.brain(MAX_BATCH=rows, ADAPTER_SLOTS=2 * rows, QUEUE_LIMIT=rows) as brain:
        await load.closed_loop(brain.client, load.requests_of(ids, tokens=1), concurrency=rows)
        for rate in rig.pick(rig.options.rates, (1.0, 8.0)):
            samples = await load.open_loop(
                brain.client, draw, rate=rate, seconds=rig.pick(15.0, 4.0), seed=rig.options.seed
            )
            yield _figure(rate, samples)


def _figure(rate: float, samples: Sequence[load.Sample]) -> Figure:
    answered = [sample for sample in samples if not sample.refused]
    first_token_ms = percentiles([sample.first_token_ms for sample in answered])
    token_ms = percentiles([sample.token_ms for sample in answered])
    total_ms = percentiles([sample.total_ms for sample in answered])
    # The seconds in which each reply was decoded; by Little's law they give the mean batch.
    decode_seconds = sum(sample.ended_at - sample.first_token_at for sample in answered)
    return Figure(
        figure="open_loop_first_token",
        value=first_token_ms["p50"],
        unit="ms",
        facts={
            "arrivals_per_second": rate,
            "requests": len(samples),
            "refused": len(samples) - len(answered),
            "tokens_per_second": round(load.tokens_per_second(samples), 1),
            "mean_batch": round(decode_seconds / load.duration(samples), 2),
            **{f"first_token_ms_{name}": round(value, 1) for name, value in first_token_ms.items()},
            **{f"token_ms_{name}": round(value, 1) for name, value in token_ms.items()},
            **{f"total_ms_{name}": round(value, 1) for name, value in total_ms.items()},
            **load.facts(samples),
        },
    )
