"""What is measured, as it runs: the brain in a process of its own, on a real S3, with students who have adapters."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import AutoConfig

from benchmarks.adapters import Students
from client.brain import BrainClient
from mesh.adapters.ref import DEFAULT_TENANT
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.base import BaseModel, DtypeName, load_base
from mesh.lm.weights import BaseModelFiles
from testing.models.random_adapters import Widths
from testing.parts.part import Part, free_ports
from testing.parts.stores import S3Endpoint, seaweed

T = TypeVar("T")

BUCKET = "benchmark"
# A 7B model on a slow disk.
LOAD_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run was asked for.

    Attributes:
        quick: Whether to show that it works rather than to measure.
        device: `cpu` or `cuda`.
        dtype: Such as `bfloat16`; of the brain and of what it is compared with.
        registered: Numbers of adapters in the store, for the section of that name.
        rates: Of arrivals a second, for the open loop.
        vllm: The interpreter of vLLM's venv, which may be absent.
        seed: Of all that is drawn.
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
        address: Of its gRPC.
        client: Speaks to it there.
        metrics_url: Where its figures are.
        process_id: Of its process.
        start_seconds: From the start of the process until it was healthy.
        settings: The variables that it was given beside the stage's.
    """

    address: str
    client: BrainClient
    metrics_url: str
    process_id: int
    start_seconds: float
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where all of one run happens.

    Attributes:
        options: What was asked for.
        files: The base model.
        folder: For data and logs.
        s3: Where adapters are.
        blobs: The same, opened.
        students: Whose adapters.
        tenant: Whose students.
    """

    options: Options
    files: BaseModelFiles
    folder: Path
    s3: S3Endpoint
    blobs: S3Blobs
    students: Students
    tenant: str = DEFAULT_TENANT

    def pick(self, full: T, quick: T) -> T:
        """The first in a measurement, the second in a trial."""
        return quick if self.options.quick else full

    @property
    def tokens(self) -> int:
        """New tokens in a reply."""
        return self.pick(100, 24)

    @property
    def rows(self) -> int:
        """Replies that are decoded together where many students come; what the device is fast with."""
        return 64 if self.options.device == "cuda" else 16

    @property
    def store(self) -> AdapterStore:
        """The tenant's adapters."""
        return AdapterStore(self.blobs, tenant=self.tenant)

    def base(self) -> BaseModel:
        """A copy of the base model in this process, for what it is compared with."""
        return load_base(
            self.files.name,
            cache_dir=self.files.path.parent,
            device=self.options.device,
            dtype=self.options.dtype,
        )

    @asynccontextmanager
    async def brain(self, **settings: object) -> AsyncIterator[Brain]:
        """Runs the brain with these settings; it is healthy when this is entered, and gone when it is left."""
        port, metrics_port = free_ports(2)
        variables = {name: str(value) for name, value in settings.items()}
        env = {
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
            # Nobody publishes while something is measured.
            "ADAPTER_POINTER_TTL_SECONDS": "3600",
            **variables,
        }
        address = f"127.0.0.1:{port}"
        folder = self.folder / f"brain-{port}"
        folder.mkdir()
        part = Part([sys.executable, "-m", "brain_server"], folder=folder, probe=lambda: _listens(port), env=env)
        async with AsyncExitStack() as stack:
            began_at = asyncio.get_running_loop().time()
            stack.push_async_callback(part.stop)
            await part.start()
            client = await stack.enter_async_context(BrainClient(address))
            await _until_healthy(client, part)
            seconds = asyncio.get_running_loop().time() - began_at
            yield Brain(
                address=address,
                client=client,
                metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
                process_id=part.process_id,
                start_seconds=seconds,
                settings=variables,
            )


@asynccontextmanager
async def open_stage(folder: Path, files: BaseModelFiles, *, options: Options) -> AsyncIterator[Stage]:
    """Runs the store, empty."""
    async with AsyncExitStack() as stack:
        (folder / "s3").mkdir()
        s3 = await stack.enter_async_context(seaweed(folder / "s3"))
        # Where boto3 looks for credentials.
        os.environ.update(s3.env)
        blobs = await stack.enter_async_context(S3Blobs(bucket=BUCKET, endpoint_url=s3.url, create_bucket=True))
        widths = Widths.of(AutoConfig.from_pretrained(files.path))
        yield Stage(
            options=options,
            files=files,
            folder=folder,
            s3=s3,
            blobs=blobs,
            students=Students(AdapterStore(blobs), widths=widths, base_digest=files.digest),
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
            # Between questions, as a load balancer would.
            await asyncio.sleep(0.1)
