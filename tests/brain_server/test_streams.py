"""A thousand streams at once through gRPC, half of them cancelled: the rest complete, and nothing is left behind."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.adapter_service_pb2 import ListAdaptersRequest
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from brain_server.app import BRAIN_SERVICE, open_server
from brain_server.batching import Ticket
from brain_server.settings import BrainSettings
from brain_server.tasks import ReplyTask
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.base import load_base
from mesh.rpc.server import Server
from tests.brain_server.adapters_at_rest import Widths
from tests.brain_server.churn import publish_students
from tests.stack import S3Endpoint

if TYPE_CHECKING:
    from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceAsyncStub
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub

BUCKET = "test-streams"
STREAMS = 1_000
STUDENTS = 20
TOKENS = 6
# Between the ends of two rounds of a thousand streams, client and server in one process: allocators keep some of what
# they were given back. That nothing of the engine's is kept is counted, not weighed.
KEPT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Brain:
    """A brain in this process, called through its port."""

    server: Server
    stub: "BrainServiceAsyncStub"
    adapters: "AdapterServiceAsyncStub"
    students: list[str]

    def figure(self, name: str) -> float | None:
        """One of its figures, as a scrape would show it."""
        return self.server.registry.get_sample_value(name)


@pytest.fixture
async def brain(s3_endpoint: S3Endpoint, small_llama: Path) -> AsyncIterator[Brain]:
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
        await serving(channel)
        yield Brain(
            server=server, stub=BrainServiceStub(channel), adapters=AdapterServiceStub(channel), students=list(students)
        )


async def serving(channel: grpc.aio.Channel) -> None:
    """Returns once the base model is loaded."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=BRAIN_SERVICE))
    async for message in watch:
        if message.status == health_pb2.HealthCheckResponse.SERVING:
            watch.cancel()
            return


async def test_a_thousand_streams_half_of_them_cancelled_leave_nothing_behind(brain: Brain) -> None:
    tasks = len(asyncio.all_tasks())
    await round_of_streams(brain, seed=1)
    kept = resident_bytes()
    await round_of_streams(brain, seed=2)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    gc.collect()
    assert [one for one in gc.get_objects() if type(one) in {Ticket, ReplyTask}] == []
    assert resident_bytes() - kept < KEPT_BYTES


async def round_of_streams(brain: Brain, *, seed: int) -> None:
    """Opens them all, cancels half of them at some moment, and sees that the rest complete and all is as before."""
    chance = random.Random(seed)
    leaving = set(chance.sample(range(STREAMS), STREAMS // 2))
    everyone_is_in = asyncio.Event()

    async def listen(number: int) -> str:
        student_id = "" if number % 10 == 0 else brain.students[number % STUDENTS]
        request = pb.GenerateStreamRequest(
            prompt="Hi!", context=pb.StudentContext(student_id=student_id), temperature=0, max_tokens=TOKENS
        )
        call = brain.stub.GenerateStream(request)
        text = ""
        async for message in call:
            text += message.text
            # Before the first word, or after some of them.
            if number in leaving and len(text) >= chance.choice((0, 1, 20)):
                call.cancel()
            if message.HasField("finished"):
                assert message.finished.response == text
                assert message.finished.usage.completion_tokens <= TOKENS
        return text

    async def leave(number: int, listening: asyncio.Task[str]) -> None:
        """Hangs up while the stream still waits for its turn, or decodes."""
        await everyone_is_in.wait()
        await asyncio.sleep(chance.random())
        listening.cancel()

    listening = [asyncio.create_task(listen(number)) for number in range(STREAMS)]
    hanging_up = [asyncio.create_task(leave(number, listening[number])) for number in sorted(leaving)[::2]]
    await until(lambda: (brain.figure("aivo_engine_waiting") or 0) > STREAMS // 2)
    everyone_is_in.set()
    await asyncio.wait(listening)
    await asyncio.gather(*hanging_up)

    texts: dict[str, set[str]] = {}
    for number, one in enumerate(listening):
        if number not in leaving:
            texts.setdefault("" if number % 10 == 0 else brain.students[number % STUDENTS], set()).add(one.result())
    # Everyone who stayed heard the whole of their own student's reply, and each student's is their own.
    assert all(len(heard) == 1 for heard in texts.values())
    assert len({text for heard in texts.values() for text in heard}) == len(texts)
    assert sum(one.cancelled() for one in listening) > STREAMS // 4
    await until(lambda: brain.figure("aivo_engine_waiting") == brain.figure("aivo_engine_running") == 0)
    listed = await brain.adapters.ListAdapters(ListAdaptersRequest())
    assert sum(one.leases for one in listed.adapters) == 0
    assert len(listed.adapters) >= STUDENTS // 2


def resident_bytes() -> int:
    """Memory of this process, where the system tells it; else 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * 4096


async def until(holds: Callable[[], bool]) -> None:
    """Lets the tasks run until something holds."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)
