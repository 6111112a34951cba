"""Seeds of tests that draw by chance, and how such a draw is repeated.

The id of each test names its seed as `CHAOS_SEED=7`. Set in the environment, that replaces the random seeds:
`CHAOS_SEED=7 python -m pytest tests/mesh/adapters/test_chaos.py`, or `CHAOS_SEED=7,8` for two.
"""

import os
import random

import pytest

VARIABLE = "CHAOS_SEED"


def random_seeds(count: int) -> pytest.MarkDecorator:
    """Runs a test once per seed: for those that the environment names, or else for new random ones.

    Args:
        count: How many random ones. The test takes its seed as the argument `seed`.
    """
    named = os.environ.get(VARIABLE)
    # pytest-xdist's workers must collect the same tests: they share the id of their run. Without it, draws are random.
    chance = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
    seeds = [int(seed) for seed in named.split(",")] if named else chance.sample(range(2**32), count)
    return pytest.mark.parametrize("seed", seeds, ids=[f"{VARIABLE}={seed}" for seed in seeds])
