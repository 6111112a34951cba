"""Whether a brain keeps memory of a thousand streams at once, half of them cancelled, round after round."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from transformers import AutoTokenizer

from benchmarks.figures import Figure, Goal
from benchmarks.stage import Stage
from mesh.lm.base import load_base
from testing.load.churn import publish_students
from testing.load.streams import STREAMS, BrainUnderLoad, run_round
from testing.models.random_adapters import Widths
from testing.models.small_models import write_small_llama

_STUDENTS = 20
# What a stream may keep, as measured over the last rounds; its request, reply and log lines take more than this.
_MOST_BYTES_A_STREAM = 2048


async def streams(stage: Stage) -> AsyncIterator[Figure]:
    """Memory of the brain's process after each round, on a base model that computes next to nothing.

    Every round sees that the streams that stay get the whole reply of their own student's adapter, and that no row, no
    lease and no waiting call is left. oneDNN compiles a product anew for every number of rows that it meets, and keeps
    what it compiled up to a number of products; that number is small here, so that what is left is the brain's own.
    """
    rounds = stage.pick(10, 2)
    folder = write_small_llama(stage.folder / "small-llama", AutoTokenizer.from_pretrained(stage.files.path))
    base = load_base(str(folder), cache_dir=folder.parent, device="cpu", dtype="float32")
    widths = Widths.of(base.model.config)
    students = await publish_students(stage.store, count=_STUDENTS, versions=1, widths=widths, base_digest=base.digest)
    settings = {
        "BASE_MODEL": folder,
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "QUEUE_LIMIT": STREAMS,
        "STUDENT_LIMIT": STREAMS,
        "KV_CACHE_BYTES": 16 << 20,
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 32,
    }
    async with AsyncExitStack() as stack:
        brain = await stack.enter_async_context(stage.brain(**settings))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(brain.address))
        loaded = BrainUnderLoad(
            stub=BrainServiceStub(channel),
            adapters=AdapterServiceStub(channel),
            metrics_url=brain.metrics_url,
            students=list(students),
        )
        resident_bytes = []
        for number in range(rounds):
            await run_round(loaded, seed=stage.options.seed + number)
            resident_bytes.append(_resident_bytes(brain.process_id))
    half = rounds // 2
    yield Figure(
        figure="memory_kept_a_stream",
        value=(resident_bytes[-1] - resident_bytes[half]) / ((rounds - 1 - half) * STREAMS or 1),
        unit="bytes",
        goal=Goal(of="value", at_most=_MOST_BYTES_A_STREAM),
        facts={"rounds": rounds, "streams": STREAMS, "resident_mb": [round(size / 1e6, 1) for size in resident_bytes]},
    )


def _resident_bytes(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * 4096
