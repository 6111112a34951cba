"""The rig of the serving benchmarks: a real brain in its own process, a real S3, and students with adapters."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import AutoConfig

from benchmarks.published_students import PublishedStudents
from client.brain import BrainClient
from mesh.adapters.ref import DEFAULT_TENANT
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.main_brain.base import BaseModel, DtypeName, load_files
from mesh.main_brain.files import MainBrainFiles
from testing.models.random_adapters import Widths
from testing.parts.part import Part, free_ports
from testing.parts.stores import S3Endpoint, seaweed

T = TypeVar("T")

BUCKET = "benchmark"
# A 7B model loads in this time from a slow disk.
LOAD_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a run.

    Attributes:
        quick: Whether the run only checks that the benchmark works.
        device: `cpu` or `cuda`.
        dtype: Dtype of the brain and of the baselines, such as `bfloat16`.
        registered: Numbers of adapters in the store, for the section `registered`.
        rates: Arrivals per second, for the section `arrivals`.
        vllm: Python interpreter of vLLM's venv; the file may be missing.
        seed: Seed of all random choices.
    """

    quick: bool
    device: str
    dtype: DtypeName
    registered: tuple[int, ...]
    rates: tuple[float, ...]
    vllm: Path
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Brain:
    """A running brain with its base model loaded.

    Attributes:
        address: Host and port of its gRPC server.
        client: A client connected to that address.
        metrics_url: URL of its Prometheus metrics.
        process_id: Id of its process.
        start_seconds: Seconds from the start of the process until it was healthy.
        settings: The environment variables that the caller of `Rig.brain` added.
    """

    address: str
    client: BrainClient
    metrics_url: str
    process_id: int
    start_seconds: float
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Everything that the sections of one run share.

    Attributes:
        options: The options of the run.
        files: The Main Brain's files.
        folder: Folder for data and logs.
        s3: The S3 that stores the adapters.
        blobs: An open connection to its bucket.
        students: Students with an adapter in the store.
        tenant: The tenant to whom the students belong.
    """

    options: Options
    files: MainBrainFiles
    folder: Path
    s3: S3Endpoint
    blobs: S3Blobs
    students: PublishedStudents
    tenant: str = DEFAULT_TENANT

    def pick(self, full: T, quick: T) -> T:
        """Returns the first value in a measurement, the second in a quick run."""
        return quick if self.options.quick else full

    @property
    def tokens(self) -> int:
        """Length of a reply in tokens."""
        return self.pick(100, 24)

    @property
    def rows(self) -> int:
        """Batch size for sections with many students; the device is fast with it."""
        return 64 if self.options.device == "cuda" else 16

    @property
    def store(self) -> AdapterStore:
        """The adapter store of the tenant."""
        return AdapterStore(self.blobs, tenant=self.tenant)

    def load_base_model(self) -> BaseModel:
        """Loads the base model into this process, for the baselines."""
        return load_files(self.files, device=self.options.device, dtype=self.options.dtype)

    @asynccontextmanager
    async def brain(self, **settings: object) -> AsyncIterator[Brain]:
        """Runs a brain: yields it once it is healthy, and stops it at the end.

        Args:
            settings: Environment variables of the brain, added to the rig's or in place of them.
        """
        port, metrics_port = free_ports(2)
        variables = {name: str(value) for name, value in settings.items()}
        env = self._brain_env(port, metrics_port) | variables
        address = f"127.0.0.1:{port}"
        folder = self.folder / f"brain-{port}"
        folder.mkdir()
        part = Part([sys.executable, "-m", "brain_server"], folder=folder, probe=lambda: _listens(port), env=env)
        async with AsyncExitStack() as stack:
            started_at = asyncio.get_running_loop().time()
            stack.push_async_callback(part.stop)
            await part.start()
            client = await stack.enter_async_context(BrainClient(address))
            await _until_healthy(client, part)
            seconds = asyncio.get_running_loop().time() - started_at
            yield Brain(
                address=address,
                client=client,
                metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
                process_id=part.process_id,
                start_seconds=seconds,
                settings=variables,
            )

    def _brain_env(self, port: int, metrics_port: int) -> dict[str, str]:
        return {
            **self.s3.env,
            "S3_ENDPOINT_URL": self.s3.url,
            "S3_BUCKET": BUCKET,
            "TENANT": self.tenant,
            "BASE_MODEL": self.files.name,
            "MODEL_CACHE_DIR": str(self.files.path.parent.resolve()),
            "DEVICE": self.options.device,
            "DTYPE": self.options.dtype,
            "BRAIN_PORT": str(port),
            "BRAIN_METRICS_PORT": str(metrics_port),
            "DRAIN_SECONDS": "1",
            # Active versions do not change during a measurement, so pointers need no refresh.
            "ADAPTER_POINTER_TTL_SECONDS": "3600",
        }


@asynccontextmanager
async def open_rig(folder: Path, files: MainBrainFiles, *, options: Options) -> AsyncIterator[Rig]:
    """Starts an empty store and yields a rig on it."""
    async with AsyncExitStack() as stack:
        (folder / "s3").mkdir()
        s3 = await stack.enter_async_context(seaweed(folder / "s3"))
        # boto3 reads its credentials from the environment.
        os.environ.update(s3.env)
        blobs = await stack.enter_async_context(S3Blobs(bucket=BUCKET, endpoint_url=s3.url, create_bucket=True))
        widths = Widths.of(AutoConfig.from_pretrained(files.path))
        yield Rig(
            options=options,
            files=files,
            folder=folder,
            s3=s3,
            blobs=blobs,
            students=PublishedStudents(AdapterStore(blobs), widths=widths, base_digest=files.digest),
        )


async def _listens(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()
    return True


async def _until_healthy(client: BrainClient, part: Part) -> None:
    async with asyncio.timeout(LOAD_SECONDS):
        while (health := await client.health()).status != "healthy":
            if health.status == "unhealthy":
                raise RuntimeError(f"the brain is unhealthy:\n{part.log_tail()}")
            # Health can only be polled; this is the pause between two polls.
            await asyncio.sleep(0.1)
