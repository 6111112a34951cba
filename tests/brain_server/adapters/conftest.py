"""A store on a real S3."""

import uuid
from collections.abc import AsyncIterator

import pytest

from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from testing.parts.stores import S3Endpoint
from tests.brain_server.adapters.choosing import blobs_at


@pytest.fixture
async def blobs(s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[S3Blobs]:
    async with blobs_at(s3_endpoint, bucket) as opened:
        yield opened


@pytest.fixture
def store(blobs: S3Blobs) -> AdapterStore:
    return AdapterStore(blobs)


@pytest.fixture
def student() -> str:
    return f"student-{uuid.uuid4().hex[:12]}"
