"""A thousand streams at once through gRPC, half of them cancelled: the rest complete, and nothing is left behind."""

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from brain_server.app import BRAIN_SERVICE, open_server
from brain_server.settings import BrainSettings
from brain_server.torch_engine.compute.sequences import ReplySequence
from brain_server.torch_engine.ticket import Ticket
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.main_brain.base import load_base
from testing.load.churn import publish_students
from testing.load.streams import STREAMS, BrainUnderLoad, run_round, until
from testing.models.random_adapters import Widths
from testing.parts.stores import S3Endpoint

BUCKET = "test-streams"
STUDENTS = 20
# Growth from the end of one round of a thousand streams to the end of the next, with client and server in one process.
# It is oneDNN's, which compiles a product for each number of rows and caches the 1,024 used last. With
# ONEDNN_PRIMITIVE_CACHE_CAPACITY=32 a round adds 1 to 3 MB. `benchmarks.serving --only streams` runs more rounds.
MAX_GROWTH_BYTES = 64 << 20


@pytest.fixture
async def brain(s3_endpoint: S3Endpoint, small_llama: Path) -> AsyncIterator[BrainUnderLoad]:
    settings = BrainSettings(
        base_model=str(small_llama),
        model_cache_dir=small_llama.parent,
        device="cpu",
        dtype="float32",
        brain_port=0,
        brain_metrics_port=0,
        s3_bucket=BUCKET,
        s3_endpoint_url=s3_endpoint.url,
        queue_limit=STREAMS,
        student_limit=STREAMS,
        max_batch=16,
        adapter_slots=16,
        kv_cache_bytes=16 << 20,
        adapter_pointer_ttl_seconds=60,
    )
    base = load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")
    async with AsyncExitStack() as stack:
        blobs = S3Blobs(bucket=BUCKET, endpoint_url=s3_endpoint.url, create_bucket=True)
        store = AdapterStore(await stack.enter_async_context(blobs))
        widths = Widths.of(base.model.config)
        students = await publish_students(store, count=STUDENTS, versions=1, widths=widths, base_digest=base.digest)
        server = await stack.enter_async_context(open_server(settings))
        await server.start()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        await wait_serving(channel)
        yield BrainUnderLoad(
            stub=BrainServiceStub(channel),
            adapters=AdapterServiceStub(channel),
            metrics_url=f"http://127.0.0.1:{server.metrics_port}/metrics",
            students=list(students),
        )


async def wait_serving(channel: grpc.aio.Channel) -> None:
    """Returns once the base model is loaded."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=BRAIN_SERVICE))
    async for message in watch:
        if message.status == health_pb2.HealthCheckResponse.SERVING:
            watch.cancel()
            return


async def test_a_thousand_streams_half_of_them_cancelled_leave_nothing_behind(brain: BrainUnderLoad) -> None:
    task_count = len(asyncio.all_tasks())
    await run_round(brain, seed=1)
    bytes_before = bytes_in_use()
    await run_round(brain, seed=2)

    async def no_task_is_left() -> bool:
        return len(asyncio.all_tasks()) <= task_count

    await until(no_task_is_left)
    bytes_after = bytes_in_use()
    assert [leftover for leftover in gc.get_objects() if type(leftover) in {Ticket, ReplySequence}] == []
    assert bytes_after - bytes_before < MAX_GROWTH_BYTES


def bytes_in_use() -> int:
    """Memory of this process in bytes, without garbage and freed memory; 0 where the system does not say."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        # glibc keeps freed memory for later; how much depends on what else this process has run.
        trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * 4096
