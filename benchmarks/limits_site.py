"""What the sections of the benchmark of limits share: empty stores, and a cloning server that trains nothing."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub
from aivo.cloning.v1.student_service_pb2_grpc import StudentServiceStub
from pydantic import SecretStr

from benchmarks.cloning_process import cloning_process
from cloning_server.settings import CloningSettings
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.settings import BaseModelSettings, load_settings
from testing.parts.stores import RedisEndpoint, S3Endpoint, seaweed, valkey
from testing.scripted.brain import ScriptedBrain

if TYPE_CHECKING:
    # The generated code has these for type checkers alone.
    from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceAsyncStub
    from aivo.cloning.v1.student_service_pb2_grpc import StudentServiceAsyncStub

BUCKET = "benchmark"
_QUICK_WATCHERS, _QUICK_CLONES = 50, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the sections of one run share.

    Attributes:
        folder: For data and logs.
        models: Cache of base models, for the tokenizer of the default one.
        s3: An S3; its credentials are in the environment.
        redis: A Valkey.
        quick: Whether the run only checks that the benchmark works.
        watchers: How many watch.
        clones: How many clones wait meanwhile.
    """

    folder: Path
    models: Path
    s3: S3Endpoint
    redis: RedisEndpoint
    quick: bool
    watchers: int
    clones: int

    def pick(self, full: int, quick: int) -> int:
        """Returns the first number in a measurement, the second in a quick run."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCloning:
    """A cloning server in a process of its own, with a tenant of its own.

    Attributes:
        settings: Its settings.
        address: Where it listens.
        clones: Stub of its CloningService.
        students: Stub of its StudentService.
        blobs: An open connection to its bucket.
        store: Its adapter store, on that connection.
    """

    settings: CloningSettings
    address: str
    clones: "CloningServiceAsyncStub"
    students: "StudentServiceAsyncStub"
    blobs: S3Blobs
    store: AdapterStore


@asynccontextmanager
async def open_site(*, quick: bool, watchers: int, clones: int) -> AsyncIterator[Site]:
    """Starts empty stores; a quick run has few watchers and clones."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aivo-benchmark-")))
        for name in ("s3", "valkey"):
            (folder / name).mkdir()
        s3 = await stack.enter_async_context(seaweed(folder / "s3"))
        # boto3 reads its credentials from the environment.
        os.environ.update(s3.env)
        yield Site(
            folder=folder,
            models=load_settings(BaseModelSettings).model_cache_dir.absolute(),
            s3=s3,
            redis=await stack.enter_async_context(valkey(folder / "valkey")),
            quick=quick,
            watchers=min(watchers, _QUICK_WATCHERS) if quick else watchers,
            clones=min(clones, _QUICK_CLONES) if quick else clones,
        )


@asynccontextmanager
async def run_cloning(site: Site, *, tenant: str, **settings: object) -> AsyncIterator[RunningCloning]:
    """Runs a cloning server with these settings, as `make up` does, beside a scripted brain."""
    async with AsyncExitStack() as stack:
        blobs = await stack.enter_async_context(S3Blobs(bucket=BUCKET, endpoint_url=site.s3.url, create_bucket=True))
        store = AdapterStore(blobs, tenant=tenant)
        brain = ScriptedBrain(store)
        stack.push_async_callback(brain.stop)
        await brain.start()
        common = CloningSettings(
            cloning_port=0,
            cloning_metrics_port=0,
            drain_seconds=0,
            redis_url=site.redis.url,
            s3_endpoint_url=site.s3.url,
            s3_bucket=BUCKET,
            tenant=tenant,
            brain_address=brain.address,
            master_key=SecretStr("5a" * 32),
        )
        cloning_settings = common.model_copy(update=settings)
        address = await stack.enter_async_context(cloning_process(cloning_settings))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield RunningCloning(
            settings=cloning_settings,
            address=address,
            clones=CloningServiceStub(channel),
            students=StudentServiceStub(channel),
            blobs=blobs,
            store=store,
        )
