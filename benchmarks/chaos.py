"""Checks that every clone ends exactly once while parts of AIVO fail.

    python -m benchmarks.chaos [--seconds 300] [--outage-seconds 30] [--seed 7]

Runs a whole AIVO with two cloning servers on a small random base model. Students keep four clones running while faults
of every kind in `testing/chaos/faults.py` strike at random moments. After each, all servers must be well, and a canary
clone must complete. At the end it checks the invariants of `testing/chaos/invariants.py`. Prints one JSON line per
figure, and exits with status 1 if the run shows a fault.
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
from testing.chaos.chaos import LEAST_COMPLETED_SHARE, Report, run

RESULTS = Path(__file__).parent / "results" / "chaos.jsonl"
_NONE = Goal(of="value", at_most=0)


def main() -> int:
    """Prints the figures; returns 1 if the run shows a fault."""
    parser = argparse.ArgumentParser(description="Checks that clones end exactly once while parts fail.")
    parser.add_argument("--seconds", type=float, default=300, help="how long faults strike; then clones may finish")
    parser.add_argument("--outage-seconds", type=float, default=30, help="how long S3 is down or hangs")
    parser.add_argument("--seed", type=int, default=7, help="seed of the faults and of the clones")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file for the results")
    args = parser.parse_args()
    results = Results(args.results, conditions={name: value for name, value in vars(args).items() if name != "results"})
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(_measure(Path(folder), args))
    for figure in _figures(report, seconds=time.monotonic() - started_at):
        results.add(figure)
    return 1 if report.faults else 0


async def _measure(folder: Path, args: argparse.Namespace) -> Report:
    # boto3 reads its credentials from the environment; these are those of the S3 that `run` starts.
    os.environ.update(AWS_ACCESS_KEY_ID="aivo", AWS_SECRET_ACCESS_KEY="aivo-secret", AWS_DEFAULT_REGION="us-east-1")
    chance = random.Random(args.seed)

    def plan(kinds: tuple[str, ...]) -> Iterator[str]:
        """Yields all kinds of fault in random order, repeatedly, until the time is over."""
        ends_at = time.monotonic() + args.seconds
        while True:
            for kind in chance.sample(kinds, len(kinds)):
                if time.monotonic() > ends_at:
                    return
                yield kind

    models = load_settings(BaseModelSettings).model_cache_dir.absolute()
    return await run(folder, models=models, seed=args.seed, outage_seconds=args.outage_seconds, plan=plan)


def _figures(report: Report, *, seconds: float) -> Iterator[Figure]:
    yield Figure(figure="strikes", value=report.strikes.total(), unit="strikes", facts=dict(report.strikes))
    yield Figure(figure="canaries", value=report.canaries, unit="clones after as many strikes")
    yield Figure(figure="accepted", value=report.accepted, unit="clones", facts={"seconds": round(seconds, 1)})
    share_goal = Goal(of="value", at_least=LEAST_COMPLETED_SHARE)
    refused = {"repeats_refused": report.repeats_refused}
    yield Figure(figure="completed", value=report.completed, unit="clones", facts=refused)
    yield Figure(figure="completed_share", value=report.completed_share, unit="of the accepted", goal=share_goal)
    yield Figure(figure="failed", value=report.failed.total(), unit="clones", facts={"reasons": dict(report.failed)})
    for name, clones in (("lost", report.lost), ("doubled", report.doubled)):
        yield Figure(figure=name, value=len(clones), unit="clones", goal=_NONE, facts={name: clones})
    yield Figure(figure="deleted", value=report.deleted, unit="students")
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
