"""Which adapter answers while the store does not."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from torch import Tensor

from brain_server.adapters.choice import AdapterChoice
from brain_server.engine.contract import AdapterPolicy, Fallback
from mesh.adapters.blobs import Blob
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    AdapterStoreUnavailable,
    AivoError,
)
from testing.parts.fault_proxy import FaultProxy, Way
from testing.parts.stores import S3Endpoint, seaweed
from testing.waiting import POLL_SECONDS
from tests.brain_server.adapters.choosing import (
    HOUR_SECONDS,
    Adapters,
    adapters_of,
    blobs_at,
    choose,
    publish_random,
    request_of,
)

ANSWER_SECONDS = 1.0


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


class ReadCounter(S3Blobs):
    """The real store, which counts what it is asked."""

    reads = 0

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        self.reads += 1
        return await super().read(key, limit_bytes=limit_bytes)


class TestAHang:
    """The store accepts connections, and does not answer."""

    @pytest.fixture
    async def proxy(self, s3_endpoint: S3Endpoint) -> AsyncIterator[FaultProxy]:
        async with FaultProxy(int(s3_endpoint.url.rpartition(":")[2])) as proxy:
            yield proxy

    @pytest.fixture
    async def blobs(self, proxy: FaultProxy, bucket: str) -> AsyncIterator[ReadCounter]:
        blobs = ReadCounter(bucket=bucket, endpoint_url=f"http://127.0.0.1:{proxy.port}", create_bucket=True)
        async with blobs:
            yield blobs
            # The end waits for the threads that wait for S3.
            proxy.heal()

    async def test_after_one_caller_nobody_waits_and_one_probe_asks_again(
        self, proxy: FaultProxy, blobs: ReadCounter
    ) -> None:
        store = AdapterStore(blobs)
        await publish_random(store, "resident")
        adapters = adapters_of(store, answer=ANSWER_SECONDS)
        await _until_adapter(adapters, "resident")
        proxy.hang()
        with pytest.raises(AdapterStoreUnavailable, match="within 1 s"):
            await adapters.pointers.resolve("resident")

        blobs.reads = 0
        for number in range(8):
            with pytest.raises(AdapterStoreUnavailable, match="a moment ago"):
                await adapters.pointers.resolve(f"stranger-{number}")
            assert (await choose(adapters, request_of("resident"))).adapter is not None
            # Lets a probe begin.
            await asyncio.sleep(0)
        assert blobs.reads == 1

        proxy.heal()
        assert (await _until_adapter(adapters, "resident")).adapter is not None
        await adapters.aclose()

    async def test_a_fetch_that_takes_too_long_goes_on_while_the_main_brain_answers(
        self, proxy: FaultProxy, blobs: ReadCounter
    ) -> None:
        store = AdapterStore(blobs)
        await publish_random(store, "ada")
        adapters = adapters_of(store, ttl=HOUR_SECONDS, answer=ANSWER_SECONDS)
        await adapters.pointers.resolve("ada", refresh=True)
        blobs.reads = 0
        proxy.stop(Way.ANSWERS)

        choice = await choose(adapters, request_of("ada"))
        assert choice.fallback is Fallback.ADAPTER_STORE_UNAVAILABLE

        proxy.heal()
        required = await choose(adapters, request_of("ada", policy=AdapterPolicy.REQUIRE))
        assert required.adapter is not None
        assert blobs.reads == 2, "the manifest and the weights, once for both requests"

    async def test_the_end_cancels_a_probe(self, proxy: FaultProxy, blobs: ReadCounter) -> None:
        adapters = adapters_of(AdapterStore(blobs), answer=ANSWER_SECONDS)
        proxy.hang()
        for reason in ("within 1 s", "a moment ago"):
            with pytest.raises(AdapterStoreUnavailable, match=reason):
                await adapters.pointers.resolve("anyone")
        await adapters.aclose()


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
            # Lets the probe go on.
            await asyncio.sleep(POLL_SECONDS)
