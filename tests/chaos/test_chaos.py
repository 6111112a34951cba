"""Every part of a whole AIVO is killed while clones run; each clone ends once, and nothing is left over."""

import random
from pathlib import Path

import pytest

from mesh.settings import BaseModelSettings, load_settings
from testing.chaos.chaos import run
from testing.parts.stores import S3Endpoint
from testing.seeds import random_seeds

# A restart of everything, some of it twice, on two busy cores; it takes a third of this.
CHAOS_SECONDS = 600
# Long enough for a clone to reach `saving` while S3 is down.
S3_SECONDS = 3.0


@pytest.mark.slow
@pytest.mark.timeout(CHAOS_SECONDS)
@random_seeds(1)
async def test_whatever_is_killed_every_clone_ends_and_has_one_version_or_none(
    tmp_path: Path, s3_endpoint: S3Endpoint, seed: int
) -> None:
    draws = random.Random(seed)
    models = load_settings(BaseModelSettings).model_cache_dir.absolute()
    report = await run(
        tmp_path,
        models=models,
        seed=seed,
        s3_seconds=S3_SECONDS,
        plan=lambda kinds: draws.sample(kinds, len(kinds)),
    )
    assert report.violated == []
    assert set(report.strikes.values()) == {1}
    assert report.completed > 0
