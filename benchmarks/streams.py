"""Memory that a brain keeps after rounds of a thousand simultaneous streams, half of them cancelled."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from transformers import AutoTokenizer

from benchmarks.figures import Figure, Goal
from benchmarks.rig import Rig
from mesh.main_brain.base import load_base
from testing.load.churn import publish_students
from testing.load.streams import STREAMS, BrainUnderLoad, run_round
from testing.models.random_adapters import Widths
from testing.models.small_models import write_small_llama

_STUDENTS = 20
# Bytes that may stay in memory per stream, over the last rounds; a stream's request, reply and log lines take more.
_MAX_BYTES_PER_STREAM = 2048
_SETTINGS: Mapping[str, object] = {
    "DEVICE": "cpu",
    "DTYPE": "float32",
    "QUEUE_LIMIT": STREAMS,
    "STUDENT_LIMIT": STREAMS,
    "KV_CACHE_BYTES": 16 << 20,
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 32,
}


async def streams(rig: Rig) -> AsyncIterator[Figure]:
    """Measures the memory of the brain's process after each round, on a tiny base model.

    Each round checks that every stream that was not cancelled received a whole reply from its own student's adapter,
    and that no row, lease or waiting call remains. oneDNN compiles one kernel per number of rows and caches it; the
    cache is small here, so that its growth is not counted as the brain's.
    """
    rounds = rig.pick(10, 2)
    folder = write_small_llama(rig.folder / "small-llama", AutoTokenizer.from_pretrained(rig.files.path))
    base = load_base(str(folder), cache_dir=folder.parent, device="cpu", dtype="float32")
    widths = Widths.of(base.model.config)
    students = await publish_students(rig.store, count=_STUDENTS, versions=1, widths=widths, base_digest=base.digest)
    async with AsyncExitStack() as stack:
        brain = await stack.enter_async_context(rig.brain(BASE_MODEL=folder, **_SETTINGS))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(brain.address))
        brain_under_load = BrainUnderLoad(
            stub=BrainServiceStub(channel),
            adapters=AdapterServiceStub(channel),
            metrics_url=brain.metrics_url,
            students=list(students),
        )
        resident_bytes = []
        for number in range(rounds):
            await run_round(brain_under_load, seed=rig.options.seed + number)
            resident_bytes.append(_resident_bytes(brain.process_id))
    # The first half of the rounds warms up allocators and caches.
    half = rounds // 2
    yield Figure(
        figure="memory_kept_a_stream",
        value=(resident_bytes[-1] - resident_bytes[half]) / ((rounds - 1 - half) * STREAMS or 1),
        unit="bytes",
        goal=Goal(of="value", at_most=_MAX_BYTES_PER_STREAM),
        facts={"rounds": rounds, "streams": STREAMS, "resident_mb": [round(size / 1e6, 1) for size in resident_bytes]},
    )


def _resident_bytes(process_id: int) -> int:
    resident_pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")
