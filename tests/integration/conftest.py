"""One running AIVO for all integration tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.settings import BaseModelSettings, load_settings
from testing.parts.stack import Stack, stack
from testing.parts.stores import RedisEndpoint, S3Endpoint

# An answer that waits behind a clone's training, on two busy cores.
ANSWER_SECONDS = 120


@pytest.fixture(scope="package")
def models() -> Path:
    """The cache of base models, with the default one in it."""
    cache = load_settings(BaseModelSettings).model_cache_dir.resolve()
    fetch(DEFAULT_BASE_MODEL, cache)
    return cache


@pytest.fixture(scope="package")
async def aivo(
    tmp_path_factory: pytest.TempPathFactory, s3_endpoint: S3Endpoint, redis_endpoint: RedisEndpoint, models: Path
) -> AsyncIterator[Stack]:
    """The whole system, healthy."""
    folder = tmp_path_factory.mktemp("aivo")
    async with stack(folder, s3=s3_endpoint, redis=redis_endpoint, bucket="integration", models=models) as running:
        yield running


@pytest.fixture
async def brain(aivo: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """REST of the brain, through the gateway."""
    async with httpx.AsyncClient(base_url=aivo.edge.brain_url, timeout=ANSWER_SECONDS) as client:
        yield client


@pytest.fixture
async def cloning(aivo: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """REST of the cloning server, through the gateway."""
    async with httpx.AsyncClient(base_url=aivo.edge.cloning_url, timeout=ANSWER_SECONDS) as client:
        yield client
