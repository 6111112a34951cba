"""Fixtures that every test may use: one of each real part for the whole run."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import hypothesis
import pytest

from testing.parts.stores import RedisEndpoint, S3Endpoint, seaweed, valkey
from testing.scripted.kms import ScriptedKms

# A busy machine is no fault of the property that is tested.
hypothesis.settings.register_profile("aivo", deadline=None)
hypothesis.settings.load_profile("aivo")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a folder in one of pytest-xdist's workers: they share servers and models for the session."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(str(item.path.parent)))


@pytest.fixture(scope="session")
async def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3Endpoint]:
    async with seaweed(tmp_path_factory.mktemp("seaweed")) as endpoint:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in endpoint.env.items():
                patch.setenv(name, value)
            yield endpoint


@pytest.fixture(scope="session")
async def redis_endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisEndpoint]:
    async with valkey(tmp_path_factory.mktemp("valkey")) as endpoint:
        yield endpoint


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedKms]:
    # It takes any credentials, so also those of a store that the test uses beside it.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, os.environ.get(name, "test"))
    with ScriptedKms().serve() as running:
        yield running


@pytest.fixture
def bucket() -> str:
    """A bucket name of this test alone."""
    return f"test-{uuid.uuid4().hex}"
