"""A whole AIVO with two cloning servers, a crowd of students, and parts that are struck while their clones run.

The training is real; the base model is small and random, so that a clone takes seconds. A seed decides who comes and
what is struck, not when each process gets its turn, so a failure may need more than one run to come back.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub
from transformers import AutoTokenizer

from mesh.adapters.ref import DEFAULT_TENANT
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.weights import fetch
from mesh.rpc.errors import error_from
from testing.chaos.crowd import Crowd
from testing.chaos.faults import Faults, Parts
from testing.chaos.invariants import Remains, violations
from testing.models.small_models import write_small_llama
from testing.parts.servers import cloning_server
from testing.parts.stack import Stack, stack
from testing.parts.stores import seaweed, valkey

if TYPE_CHECKING:
    from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceAsyncStub

AT_ONCE = 4
LEASE_SECONDS = 4.0
# A strike waits for a clone to come to a state that is drawn, but not for ever.
STATES = ("loading_base_model", "creating_adapter", "fine_tuning", "optimizing", "saving", "deploying", "completed")
STATE_SECONDS = 20.0
# And then for a moment that is drawn, up to this.
MOMENT_SECONDS = 0.5
# From the last strike to the end of the last clone: restarts, leases and pauses, several times over.
QUIET_SECONDS = 240.0
BUCKET = "chaos"
_ENV = {
    "LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "TRAINER_CPUS": "1",
    "PARALLEL_CLONES": "2",
    "CLONE_EPOCHS": "1",
    "TRAINER_PAUSE_SECONDS": "1",
    "HEARTBEAT_SECONDS": "2",
    # The last one is looked for in the bucket.
    "KEEP_VERSIONS": "100",
    "DRAIN_SECONDS": "0",
    # Beside a training of two servers, a brain may take its time.
    "STALL_SECONDS": "120",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it.

    Attributes:
        strikes: By the part that was struck.
        completed: Clones that did.
        failed: Those that did not, by reason.
        attempts: Of all clones, by how they ended.
        versions: In S3, at the end.
        swept: Folders and commits of dead workers that the sweeper removed.
        violated: The invariants that do not hold.
    """

    strikes: Counter[str]
    completed: int
    failed: Counter[str]
    attempts: Counter[str]
    versions: int
    swept: int
    violated: list[str]


async def run(
    folder: Path, *, models: Path, seed: int, s3_seconds: float, plan: Callable[[tuple[str, ...]], Iterable[str]]
) -> Report:
    """Runs clones while parts are struck, and looks at what remains.

    Args:
        folder: For the data and logs of all parts.
        models: Cache of base models, for the tokenizer of the default one.
        seed: Of everything that is drawn.
        s3_seconds: How long S3 is away when it is struck.
        plan: Given what can be struck, says what is, one after another; clones are started as long as it goes on.
    """
    chance = random.Random(seed)
    async with _running(folder, models=models, s3_seconds=s3_seconds) as (aivo, parts, addresses):
        async with contextlib.AsyncExitStack() as channels:
            opened = [await channels.enter_async_context(grpc.aio.insecure_channel(one)) for one in addresses]
            servers = [CloningServiceStub(channel) for channel in opened]
            crowd = Crowd(servers, chance=chance)
            faults = Faults(parts, chance=chance)
            async with asyncio.TaskGroup() as going:
                cloning = going.create_task(crowd.clone(at_once=AT_ONCE))
                for kind in plan(faults.kinds):
                    await _moment(crowd, chance)
                    await faults.strike(kind)
                crowd.close()
                await asyncio.wait((cloning,), timeout=QUIET_SECONDS)
                if not cloning.done():
                    raise AssertionError(f"did not end: {crowd.under_way}")
            await asyncio.wait_for(asyncio.gather(*map(_train_again, servers)), QUIET_SECONDS)
        return await _report(aivo, crowd, faults)


async def _moment(crowd: Crowd, chance: random.Random) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(crowd.reach(chance.choice(STATES)), STATE_SECONDS)
    await asyncio.sleep(chance.uniform(0, MOMENT_SECONDS))


async def _train_again(server: "CloningServiceAsyncStub") -> None:
    """Returns when a server has a trainer, also one that no clone needed since its last was struck."""
    # One that is just back may still be taken for away: a channel does not try again at once.
    while not (await server.GetHealth(pb.GetHealthRequest(), wait_for_ready=True)).model_loaded:  # noqa: ASYNC110
        await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def _running(
    folder: Path, *, models: Path, s3_seconds: float
) -> AsyncIterator[tuple[Stack, Parts, tuple[str, str]]]:
    """The whole of AIVO, with a second cloning server."""
    names = ("s3", "valkey", "base")
    s3_folder, redis_folder, base_folder = await asyncio.to_thread(_folders, folder, names)
    await asyncio.to_thread(_write_base_model, base_folder, models)
    env = {**_ENV, "BASE_MODEL": str(base_folder)}
    async with contextlib.AsyncExitStack() as running:
        s3 = await running.enter_async_context(seaweed(s3_folder))
        redis = await running.enter_async_context(valkey(redis_folder))
        aivo = await running.enter_async_context(
            stack(folder, s3=s3, redis=redis, bucket=BUCKET, models=models, env=env)
        )
        another = cloning_server(folder / "another", env=aivo.cloning_env)
        second, second_address = await running.enter_async_context(another)
        parts = Parts(
            cloning=(aivo.cloning, second),
            brain=aivo.brain,
            redis=redis.part,
            s3=s3.part,
            lease_seconds=LEASE_SECONDS,
            s3_seconds=s3_seconds,
        )
        yield aivo, parts, (aivo.cloning_address, second_address)


async def _report(aivo: Stack, crowd: Crowd, faults: Faults) -> Report:
    await aivo.wait_healthy()
    async with contextlib.AsyncExitStack() as opened:
        blobs = await opened.enter_async_context(S3Blobs(bucket=BUCKET, endpoint_url=aivo.s3.url))
        brain = await opened.enter_async_context(grpc.aio.insecure_channel(aivo.brain_address))
        cloning = await opened.enter_async_context(grpc.aio.insecure_channel(aivo.cloning_address))
        adapters = AdapterStore(blobs, tenant=DEFAULT_TENANT)
        sweep_report = await adapters.sweep(older_than_seconds=0)
        stub = CloningServiceStub(cloning)
        remains = Remains(
            cloning=stub, brain=BrainServiceStub(brain), adapters=adapters, blobs=blobs, tenant=DEFAULT_TENANT
        )
        ended = [await stub.GetClone(pb.GetCloneRequest(clone_id=one.clone_id)) for one in crowd.heard]
        students = {one.student_id for one in crowd.heard}
        return Report(
            strikes=faults.counts,
            completed=sum(clone.status == "completed" for clone in ended),
            failed=Counter(error_from(clone.error).reason for clone in ended if clone.status == "failed"),
            attempts=Counter(attempt.outcome for clone in ended for attempt in clone.attempts),
            versions=sum([len(await adapters.list_versions(student)) for student in students]),
            swept=sweep_report.removed_versions + sweep_report.voided_commits,
            violated=await violations(crowd.heard, remains),
        )


def _folders(folder: Path, names: Iterable[str]) -> list[Path]:
    found = [folder / name for name in names]
    for one in found:
        one.mkdir()
    return found


def _write_base_model(folder: Path, models: Path) -> None:
    write_small_llama(folder, AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, models).path))
