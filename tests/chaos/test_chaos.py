"""The parts of a whole AIVO fail in every way while clones run; each clone ends once, and nothing is left over."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.settings import BaseModelSettings, load_settings
from testing.chaos.chaos import Report, run
from testing.parts.stores import S3Endpoint
from testing.seeds import random_seeds

# A strike of each kind, and a restart of nearly everything, on two busy cores; it takes a third of this.
CHAOS_SECONDS = 2400
# Of the short form likewise.
SHORT_SECONDS = 400
# Long enough for a clone to reach `saving` while S3 is down.
OUTAGE_SECONDS = 3.0
# Kinds that leave every process running, so that nothing has to start again.
SHORT_KINDS = ("refuse_writes", "hang_s3", "lost_answer", "clock_jump")

GOOD = Report(
    strikes=Counter(valkey=1), accepted=20, completed=18, repeats_refused=0, failed=Counter(GATE_NOT_PASSED=2), lost=(),
    doubled=(), deleted=0, canaries=1, attempts=Counter(completed=18), versions=18, swept=0, violated=(),
)  # fmt: skip


@pytest.fixture
def models() -> Path:
    return load_settings(BaseModelSettings).model_cache_dir.absolute()


@pytest.mark.slow
@pytest.mark.timeout(CHAOS_SECONDS)
@random_seeds(1)
async def test_whatever_fails_every_clone_ends_and_has_one_version_or_none(
    tmp_path: Path, models: Path, s3_endpoint: S3Endpoint, seed: int
) -> None:
    draws = random.Random(seed)
    plan: list[str] = []

    def each_once(kinds: tuple[str, ...]) -> list[str]:
        plan.extend(draws.sample(kinds, len(kinds)))
        return plan

    report = await run(tmp_path, models=models, seed=seed, outage_seconds=OUTAGE_SECONDS, plan=each_once)
    assert report.faults == []
    assert report.strikes.keys() == set(plan)
    assert report.canaries == len(plan)
    assert report.deleted > 0


@pytest.mark.timeout(SHORT_SECONDS)
@random_seeds(1)
async def test_clones_outlive_stores_that_refuse_hang_or_lose_an_answer_and_a_clock_that_jumps(
    tmp_path: Path, models: Path, s3_endpoint: S3Endpoint, seed: int
) -> None:
    report = await run(tmp_path, models=models, seed=seed, outage_seconds=OUTAGE_SECONDS, plan=lambda _: SHORT_KINDS)
    assert report.faults == []
    assert report.strikes == dict.fromkeys(SHORT_KINDS, 1)
    assert report.canaries == len(SHORT_KINDS)


def test_a_report_that_is_good_shows_no_fault() -> None:
    assert GOOD.faults == []
    # The gate refuses what is no better than what is there.
    assert replace(GOOD, accepted=30, repeats_refused=10, failed=Counter(GATE_NOT_PASSED=12)).faults == []


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, completed=17),
        replace(GOOD, completed=1),
        replace(GOOD, accepted=0, completed=0),
        replace(GOOD, lost=("clone: queued",)),
        replace(GOOD, doubled=("clone",)),
        replace(GOOD, violated=("after valkey: the canary failed",)),
    ],
    ids=("too-few-completed", "one-completed", "none-accepted", "lost", "doubled", "violated"),
)
def test_a_report_tells_of_every_fault(bad: Report) -> None:
    assert len(bad.faults) == 1
