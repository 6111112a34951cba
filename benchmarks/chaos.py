"""Whether every clone ends once, whatever is killed while it runs, over some time.

    python -m benchmarks.chaos [--seconds 300] [--s3-seconds 30] [--seed 7]

A whole AIVO with two cloning servers and a real but small and random base model; students keep four clones going while
parts are killed at moments that are drawn: a cloning server, a training actor, a Ray node, Valkey, S3, the brain; or a
server is paused for longer than its lease. Then it looks for what `testing/chaos/invariants.py` says must not be there.
Prints one JSON line a figure, and ends with 1 if any invariant does not hold.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Goal, Results
from mesh.settings import BaseModelSettings, load_settings
from testing.chaos.chaos import Report, run

RESULTS = Path(__file__).parent / "results" / "chaos.jsonl"
_NONE = Goal(of="value", at_most=0)


def main() -> int:
    """Prints the figures; 1 if an invariant does not hold."""
    parser = argparse.ArgumentParser(description="Clones under chaos.")
    parser.add_argument("--seconds", type=float, default=300, help="how long parts are struck; what runs then may end")
    parser.add_argument("--s3-seconds", type=float, default=30, help="how long S3 is away when it is struck")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = Results(args.results, conditions={name: value for name, value in vars(args).items() if name != "results"})
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(_measure(Path(folder), args))
    for figure in _figures(report, seconds=time.monotonic() - began):
        results.add(figure)
    return 1 if report.violated else 0


async def _measure(folder: Path, args: argparse.Namespace) -> Report:
    # Where boto3 looks for the credentials of the bucket that is looked at in the end: those of the S3 that is started.
    os.environ.update(AWS_ACCESS_KEY_ID="aivo", AWS_SECRET_ACCESS_KEY="aivo-secret", AWS_DEFAULT_REGION="us-east-1")
    chance = random.Random(args.seed)

    def plan(kinds: tuple[str, ...]) -> Iterator[str]:
        """All kinds in an order that is drawn, again and again until the time is over."""
        until = time.monotonic() + args.seconds
        while True:
            for kind in chance.sample(kinds, len(kinds)):
                if time.monotonic() > until:
                    return
                yield kind

    models = load_settings(BaseModelSettings).model_cache_dir.absolute()
    return await run(folder, models=models, seed=args.seed, s3_seconds=args.s3_seconds, plan=plan)


def _figures(report: Report, *, seconds: float) -> Iterator[Figure]:
    yield Figure(figure="strikes", value=report.strikes.total(), unit="strikes", facts=dict(report.strikes))
    clones = report.completed + report.failed.total()
    yield Figure(figure="clones", value=clones, unit="clones", facts={"seconds": round(seconds, 1)})
    yield Figure(figure="completed", value=report.completed, unit="clones")
    yield Figure(figure="failed", value=report.failed.total(), unit="clones", facts={"reasons": dict(report.failed)})
    attempts = {"outcomes": dict(report.attempts)}
    yield Figure(figure="attempts", value=report.attempts.total(), unit="attempts", facts=attempts)
    yield Figure(figure="versions", value=report.versions, unit="versions")
    yield Figure(figure="swept", value=report.swept, unit="leftovers of dead workers")
    orphans = [fault for fault in report.violated if fault.startswith("orphan ")]
    yield Figure(figure="orphans", value=len(orphans), unit="objects", goal=_NONE)
    violated = {"violated": report.violated}
    yield Figure(
        figure="violated_invariants", value=len(report.violated), unit="invariants", goal=_NONE, facts=violated
    )


if __name__ == "__main__":
    raise SystemExit(main())
