"""A class that asks at once while S3 hangs: the load that a test and a benchmark share."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from transformers import AutoConfig

from brain_server.app import open_server
from brain_server.settings import BrainSettings
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.main_brain.base import load_base
from testing.adapters import publish
from testing.models.random_adapters import Widths, random_weights, recipe
from testing.parts.fault_proxy import FaultProxy
from testing.waiting import until

if TYPE_CHECKING:
    # The generated code has this for type checkers alone.
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub

STUDENTS = 24
# Longer than anybody waits: whoever waits for S3 itself is cut off by the call's deadline.
READ_TIMEOUT_SECONDS = 600.0
CALL_SECONDS = 60.0
LOAD_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedReply:
    """A reply's end, and the seconds from the call to the first token."""

    finished: pb.Finished
    first_token_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOfStudents:
    """A brain and a class whose students all have adapters.

    Attributes:
        proxy: Stands between the brain and S3.
        stub: Stub of the brain.
        students: Ids of the students. Nothing is in memory at first.
    """

    proxy: FaultProxy
    stub: "BrainServiceAsyncStub"
    students: tuple[str, ...]

    async def ask(self, student_id: str) -> TimedReply:
        """Asks a question as the student."""
        started_at = time.monotonic()
        first_token_at: float | None = None
        context = pb.StudentContext(student_id=student_id)
        request = pb.GenerateStreamRequest(prompt="Why?", context=context, max_tokens=4, temperature=0)
        async for message in self.stub.GenerateStream(request, timeout=CALL_SECONDS):
            first_token_at = first_token_at or time.monotonic()
            if message.HasField("finished"):
                return TimedReply(finished=message.finished, first_token_seconds=first_token_at - started_at)
        raise AssertionError("a stream ends with its reply")

    async def ask_all(self) -> dict[str, TimedReply]:
        """Asks as all students at once."""
        replies = await asyncio.gather(*map(self.ask, self.students))
        return dict(zip(self.students, replies, strict=True))


@asynccontextmanager
async def class_behind_proxy(base_model: Path, *, s3_url: str, bucket: str) -> AsyncIterator[ClassOfStudents]:
    """Publishes an adapter for each student, and runs a brain that reads S3 through the proxy for every call.

    Args:
        base_model: Folder of a small base model.
        s3_url: Of the S3 itself; its credentials are in the environment.
        bucket: Is created.
    """
    students = tuple(f"student-{number}" for number in range(STUDENTS))
    base = load_base(str(base_model), cache_dir=base_model.parent, device="cpu", dtype="float32")
    weights = random_weights(1, widths=Widths.of(AutoConfig.from_pretrained(base_model)))
    async with S3Blobs(bucket=bucket, endpoint_url=s3_url, create_bucket=True) as blobs:
        store = AdapterStore(blobs)
        for student_id in students:
            await publish(store, student_id, weights, recipe=recipe(base_digest=base.digest))
    port = urlsplit(s3_url).port
    assert port is not None
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(port))
        settings = BrainSettings(
            base_model=str(base_model), model_cache_dir=base_model.parent, device="cpu", dtype="float32",
            brain_port=0, brain_metrics_port=0, safety="off", max_batch=8, adapter_slots=8, kv_cache_bytes=32 << 20,
            s3_bucket=bucket, s3_endpoint_url=f"http://127.0.0.1:{proxy.port}",
            s3_read_timeout_seconds=READ_TIMEOUT_SECONDS, adapter_pointer_ttl_seconds=0,
        )  # fmt: skip
        server = await stack.enter_async_context(open_server(settings))
        # First on the way out: the server's end waits for the threads that wait for S3.
        stack.callback(proxy.heal)
        await server.start()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        stub: BrainServiceAsyncStub = BrainServiceStub(channel)

        async def is_loaded() -> bool:
            return (await stub.GetHealth(pb.GetHealthRequest())).model_loaded

        await until(is_loaded, seconds=LOAD_SECONDS)
        yield ClassOfStudents(proxy=proxy, stub=stub, students=students)
