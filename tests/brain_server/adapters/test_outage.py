"""Which adapter answers while the store does not."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from torch import Tensor

from brain_server.adapters.choice import AdapterChoice
from brain_server.engine.contract import AdapterPolicy, Fallback
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    AdapterStoreUnavailable,
    AivoError,
)
from testing.parts.stores import S3Endpoint, seaweed
from tests.brain_server.adapters.choosing import (
    HOUR_SECONDS,
    Adapters,
    adapters_of,
    blobs_at,
    choose,
    publish_random,
    request_of,
)


class TestAnOutage:
    """The store fails while a brain runs, and recovers."""

    @pytest.fixture
    async def endpoint(self, s3_endpoint: S3Endpoint, tmp_path: Path) -> AsyncIterator[S3Endpoint]:
        # Not the shared store, which other tests use; its credentials in the environment are valid here too.
        async with seaweed(tmp_path) as endpoint:
            yield endpoint

    async def test_an_adapter_in_memory_answers_and_others_fall_back_until_the_store_is_back(
        self, endpoint: S3Endpoint, bucket: str
    ) -> None:
        async with blobs_at(endpoint, bucket) as blobs:
            store = AdapterStore(blobs)
            adapters = adapters_of(store)
            await publish_random(store, "resident")
            await publish_random(store, "stranger")
            await choose(adapters, request_of("resident"))

            await endpoint.part.kill()
            assert (await choose(adapters, request_of("resident"))).adapter is not None
            assert (await choose(adapters, request_of("resident", version=1))).adapter is not None
            stranger = await choose(adapters, request_of("stranger"))
            assert stranger.fallback is Fallback.ADAPTER_STORE_UNAVAILABLE
            for generation in (request_of("stranger", policy=AdapterPolicy.REQUIRE), request_of("stranger", version=1)):
                with pytest.raises(AdapterStoreUnavailable):
                    await choose(adapters, generation)
            with pytest.raises(AdapterStoreUnavailable):
                await adapters.pointers.resolve("resident", refresh=True)

            await endpoint.part.start()
            recovered = await _until_adapter(adapters, "stranger")
            assert recovered.adapter is not None

    async def test_an_adapter_in_memory_answers_for_a_bounded_time_alone(
        self, endpoint: S3Endpoint, bucket: str
    ) -> None:
        async with blobs_at(endpoint, bucket) as blobs:
            store = AdapterStore(blobs)
            await publish_random(store, "resident")
            adapters = adapters_of(store, outage=0)
            for version in (None, 1):
                assert (await choose(adapters, request_of("resident", version=version))).adapter is not None
            await endpoint.part.kill()

            assert (await choose(adapters, request_of("resident"))).fallback is Fallback.ADAPTER_STORE_UNAVAILABLE
            with pytest.raises(AdapterStoreUnavailable):
                await choose(adapters, request_of("resident", version=1))

    async def test_not_every_caller_waits_for_a_store_that_is_down(self, endpoint: S3Endpoint, bucket: str) -> None:
        async with blobs_at(endpoint, bucket) as blobs:
            adapters = adapters_of(AdapterStore(blobs), ttl=HOUR_SECONDS)
            await endpoint.part.kill()
            with pytest.raises(AdapterStoreUnavailable):
                await adapters.pointers.resolve("anyone")
            await endpoint.part.start()
            # It is up again, which the cache does not know: no request has read from it since.
            with pytest.raises(AdapterStoreUnavailable, match="a moment ago"):
                await adapters.pointers.resolve("someone-else")
            assert await adapters.pointers.resolve("someone-else", refresh=True) is None


async def _until_adapter(adapters: Adapters, student: str) -> AdapterChoice[Mapping[str, Tensor]]:
    """Retries: SeaweedFS reports that it is up a moment before it finds all its objects."""
    async with asyncio.timeout(30):
        while True:
            try:
                choice = await choose(adapters, request_of(student))
            except AivoError:
                continue
            if choice.adapter is not None:
                return choice
