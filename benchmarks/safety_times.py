"""What screening costs: the time to the first token and text, and from a harmful sentence to the end of its stream.

    python -m benchmarks.safety_times [--rounds N] [--tokens N]

Calls go through the product's `SafetyAgent` on the Main Brain of the settings (`BASE_MODEL`, `ROLES_DIR`) with the real
torch engine, in this process, without gRPC and without students' adapters. Each arm answers the same questions, one at
a time and eight at once: `without` is the engine itself, the path as if there were no agent, and `off`, `monitor` and
`enforce` are an agent with that `SAFETY`. In every round all arms follow each other, in an order drawn anew. An agent
lives for one call, so that the guard reads every question anew.

`benchmarks/harmful_streams.py` says how a reply turns harmful.

Prints JSON lines; the first one describes the machine and the Main Brain. Writes `results/safety-times.jsonl`.
"""

import argparse
import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import load
from benchmarks.figures import Figure, Goal, Results, percentiles
from benchmarks.harmful_streams import harmful_stream_figures
from benchmarks.main_brain import conditions_of, open_main_brain
from benchmarks.timed_calls import Arm, TimedCall, time_call
from brain_server.engine.contract import AdapterPolicy, Engine, Generation, Sampling
from brain_server.safety.settings import SafetySettings
from brain_server.safety.verdict import TextKind
from brain_server.settings import BrainSettings
from mesh import log
from mesh.settings import load_settings
from testing.scripted.engine import ScriptedEngine

BATCHES = (1, 8)
_ARMS: tuple[Arm, ...] = ("without", "off", "monitor", "enforce")
# What each arm is compared with.
_BASELINES: Mapping[Arm, Arm] = {"off": "without", "monitor": "off", "enforce": "off"}
_MOMENTS: Mapping[str, Callable[[TimedCall], float]] = {
    "decoded_token": lambda call: call.first_decoded_ms,
    "delivered_text": lambda call: call.first_delivered_ms,
}
# Pieces of a scripted reply that costs nothing to decode, and replies per arm.
_FREE_PIECES, _FREE_REPLIES = 200, 100

Rounds = Mapping[Arm, Sequence[Sequence[TimedCall]]]


def main() -> None:
    """Prints and writes the figures."""
    args = _parser().parse_args()
    # Logs go to standard error; standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    asyncio.run(_measure(args))


def questions(count: int, *, round_number: int, tokens: int) -> list[Generation]:
    """Returns the calls of one round: questions about as long as each other, answered greedily and at length."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    return [
        Generation(prompt=load.prompt(round_number + number), policy=AdapterPolicy.BASE_ONLY, sampling=sampling)
        for number in range(count)
    ]


async def timed_rounds(engine: Engine, settings: SafetySettings, *, batch: int, rounds: int, tokens: int) -> Rounds:
    """Returns the calls of each arm by round, after one round to warm up.

    Raises:
        RuntimeError: A harmless question was blocked, so that the times would mean something else.
    """
    calls: dict[Arm, list[list[TimedCall]]] = {arm: [] for arm in _ARMS}
    for number in range(-1, rounds):
        generations = questions(batch, round_number=number + 1, tokens=tokens)
        # Repeatable on purpose; it need not be hard to guess.
        for arm in random.Random(number).sample(_ARMS, len(_ARMS)):
            at_once = await asyncio.gather(*(time_call(engine, settings, arm, call) for call in generations))
            if any(call.blocked_text is TextKind.PROMPT for call in at_once):
                raise RuntimeError(f"with SAFETY={arm}, a harmless question is blocked")
            if number >= 0:
                calls[arm].append(list(at_once))
    return calls


def first_token_figures(rounds: Rounds, *, batch: int, has_guard: bool) -> Iterator[Figure]:
    """Yields how many times as long each arm takes as the one it is compared with, in the median of the rounds.

    Of the calls of a round, the mean counts: prompts that arrive at once are read in several steps, so that each call
    waits for another number of steps.
    """
    for arm, base in _BASELINES.items():
        for moment, milliseconds in _MOMENTS.items():
            by_round = {
                name: [statistics.fmean(map(milliseconds, calls)) for calls in rounds[name]] for name in (arm, base)
            }
            ratios = [slow / fast for slow, fast in zip(by_round[arm], by_round[base], strict=True)]
            middle = percentiles(ratios)
            is_target = has_guard and batch == max(BATCHES) and moment == "decoded_token" and arm != "off"
            yield Figure(
                figure=f"first_{moment}_{arm}_at_batch_{batch}",
                value=middle["p50"],
                unit="x",
                goal=Goal(of="value", at_most=1.2) if is_target else None,
                facts={
                    "what": f"{arm} over {base}",
                    **middle,
                    "mean": statistics.fmean(ratios),
                    "ms": percentiles(by_round[arm]),
                    "compared_ms": percentiles(by_round[base]),
                    "rounds": len(rounds[arm]),
                    "guard_readings": sum(call.readings for calls in rounds[arm] for call in calls),
                    "blocked_replies": sum(bool(call.blocked_text) for calls in rounds[arm] for call in calls),
                },
            )


async def cost_of_off(*, replies: int = _FREE_REPLIES) -> Figure:
    """Measures what an agent with SAFETY=off adds to a piece of a reply, where decoding costs nothing."""
    engine = ScriptedEngine()
    engine.pieces = ("word ",) * _FREE_PIECES
    (generation,) = questions(1, round_number=0, tokens=_FREE_PIECES)
    seconds: dict[Arm, list[float]] = {"without": [], "off": []}
    for number in range(replies):
        for arm in sorted(seconds, reverse=bool(number % 2)):
            call = await time_call(engine, SafetySettings(), arm, generation)
            seconds[arm].append(call.ended_at - call.started_at)
    added = [off - without for off, without in zip(seconds["off"], seconds["without"], strict=True)]
    microseconds = percentiles([value / _FREE_PIECES * 1e6 for value in added])
    return Figure(
        figure="off_added_per_piece",
        value=microseconds["p50"],
        unit="us",
        facts={**microseconds, "replies": replies, "pieces": _FREE_PIECES, "engine": "scripted"},
    )


async def figures(engine: Engine, settings: SafetySettings, *, rounds: int, tokens: int) -> AsyncIterator[Figure]:
    """Yields all figures of an engine."""
    main_brain = engine.facts.main_brain
    has_guard = main_brain is not None and "guard" in main_brain.roles
    yield await cost_of_off()
    for batch in BATCHES:
        calls = await timed_rounds(engine, settings, batch=batch, rounds=rounds, tokens=tokens)
        for figure in first_token_figures(calls, batch=batch, has_guard=has_guard):
            yield figure
        generations = questions(batch, round_number=0, tokens=tokens)
        for figure in await harmful_stream_figures(engine, settings, generations, rounds=rounds):
            yield figure


async def _measure(args: argparse.Namespace) -> None:
    settings = load_settings(BrainSettings)
    async with open_main_brain(settings) as (engine, facts):
        conditions = conditions_of(facts) | {"rounds": args.rounds, "tokens": args.tokens}
        results = Results(args.out / "safety-times.jsonl", conditions=conditions)
        async for figure in figures(engine, settings, rounds=args.rounds, tokens=args.tokens):
            results.add(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.safety_times", description="Measures the time that screening adds."
    )
    parser.add_argument("--rounds", type=int, default=30, help="rounds of all arms, per batch size; 2 for a check")
    parser.add_argument(
        "--tokens", type=int, default=64, help="longest reply; enough for a sentence and for the harmful scripts"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
