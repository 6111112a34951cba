"""AIVO with two cloning servers, a crowd of students, and faults that strike its parts while clones run.

Training is real. The base model is small and random, so that a clone takes seconds. A seed decides which students come
and what is struck, but not how the processes are scheduled: a failure may take several runs to reproduce.
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
from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
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
# A strike waits until a clone reaches a random state, but no longer than this.
STATES = ("loading_base_model", "creating_adapter", "fine_tuning", "optimizing", "saving", "deploying", "completed")
STATE_SECONDS = 20.0
# Then for a random time, up to this.
MOMENT_SECONDS = 0.5
# From the last strike to the end of the last clone: enough for several restarts, leases and pauses.
QUIET_SECONDS = 240.0
BUCKET = "chaos"
_ENV = {
    "LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "TRAINER_CPUS": "1",
    "PARALLEL_CLONES": "2",
    # Short trainings: many steps on eight responses make a random model repeat itself, which the gate refuses.
    "CLONE_EPOCHS": "1",
    "CLONE_LEAST_STEPS": "0",
    "TRAINER_PAUSE_SECONDS": "1",
    "HEARTBEAT_SECONDS": "2",
    # The invariants look for every clone's version in the bucket.
    "KEEP_VERSIONS": "100",
    "DRAIN_SECONDS": "0",
    # A brain may be slow while two servers train on the same cores.
    "STALL_SECONDS": "120",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a run.

    Attributes:
        strikes: Number of strikes per kind of fault.
        completed: Number of completed clones.
        failed: Number of failed clones per reason.
        attempts: Number of attempts of all clones per outcome.
        versions: Number of versions in S3 at the end.
        swept: Number of folders and commits of dead workers that the sweep removed.
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
    """Runs clones while faults strike, then checks what is left.

    Args:
        folder: For the data and logs of all parts.
        models: Cache of base models, for the tokenizer of the default one.
        seed: Of every random choice.
        s3_seconds: How long S3 is down when it is struck.
        plan: Takes the kinds of faults; yields those that strike, one after another. Clones are started until it ends.
    """
    chance = random.Random(seed)
    async with _start_aivo(folder, models=models, s3_seconds=s3_seconds) as (aivo, parts, addresses):
        async with contextlib.AsyncExitStack() as channels:
            servers = [
                CloningServiceStub(await channels.enter_async_context(grpc.aio.insecure_channel(address)))
                for address in addresses
            ]
            crowd = Crowd(servers, chance=chance)
            faults = Faults(parts, chance=chance)
            async with asyncio.TaskGroup() as tasks:
                cloning = tasks.create_task(crowd.clone(at_once=AT_ONCE))
                for kind in plan(faults.kinds):
                    await _moment(crowd, chance)
                    await faults.strike(kind)
                crowd.close()
                await asyncio.wait((cloning,), timeout=QUIET_SECONDS)
                if not cloning.done():
                    raise AssertionError(f"these clones did not end: {crowd.unfinished}")
            await asyncio.wait_for(asyncio.gather(*map(_wait_for_trainer, servers)), QUIET_SECONDS)
        return await _report(aivo, crowd, faults)


async def _moment(crowd: Crowd, chance: random.Random) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(crowd.reach(chance.choice(STATES)), STATE_SECONDS)
    await asyncio.sleep(chance.uniform(0, MOMENT_SECONDS))


async def _wait_for_trainer(server: "CloningServiceAsyncStub") -> None:
    """Returns when a server has a trainer. No clone may have needed it since its trainer was struck."""
    # A channel does not reconnect at once to a server that has just come back, so the call waits for it.
    while not (await server.GetHealth(pb.GetHealthRequest(), wait_for_ready=True)).model_loaded:  # noqa: ASYNC110 - health has no event
        await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def _start_aivo(
    folder: Path, *, models: Path, s3_seconds: float
) -> AsyncIterator[tuple[Stack, Parts, tuple[str, str]]]:
    """Runs AIVO with a second cloning server."""
    names = ("s3", "valkey", "base")
    s3_folder, redis_folder, base_folder = await asyncio.to_thread(_folders, folder, names)
    await asyncio.to_thread(_write_base_model, base_folder, models)
    env = {**_ENV, "BASE_MODEL": str(base_folder)}
    async with contextlib.AsyncExitStack() as processes:
        s3 = await processes.enter_async_context(seaweed(s3_folder))
        redis = await processes.enter_async_context(valkey(redis_folder))
        aivo = await processes.enter_async_context(
            stack(folder, s3=s3, redis=redis, bucket=BUCKET, models=models, env=env)
        )
        second_server, second_address = await processes.enter_async_context(
            cloning_server(folder / "another", env=aivo.cloning_env)
        )
        parts = Parts(
            cloning=(aivo.cloning, second_server),
            brain=aivo.brain,
            redis=redis.part,
            s3=s3.part,
            lease_seconds=LEASE_SECONDS,
            s3_seconds=s3_seconds,
        )
        yield aivo, parts, (aivo.cloning_address, second_address)


async def _report(aivo: Stack, crowd: Crowd, faults: Faults) -> Report:
    await aivo.wait_healthy()
    async with contextlib.AsyncExitStack() as clients:
        blobs = await clients.enter_async_context(S3Blobs(bucket=BUCKET, endpoint_url=aivo.s3.url))
        brain = await clients.enter_async_context(grpc.aio.insecure_channel(aivo.brain_address))
        cloning = await clients.enter_async_context(grpc.aio.insecure_channel(aivo.cloning_address))
        adapters = AdapterStore(blobs, tenant=DEFAULT_TENANT)
        sweep_report = await adapters.sweep(older_than_seconds=0)
        stub = CloningServiceStub(cloning)
        remains = Remains(
            cloning=stub, brain=BrainServiceStub(brain), adapters=adapters, blobs=blobs, tenant=DEFAULT_TENANT
        )
        clones = [await stub.GetClone(pb.GetCloneRequest(clone_id=history.clone_id)) for history in crowd.histories]
        students = {history.student_id for history in crowd.histories}
        return Report(
            strikes=faults.counts,
            completed=sum(clone.status == "completed" for clone in clones),
            failed=Counter(error_from(clone.error).reason for clone in clones if clone.status == "failed"),
            attempts=Counter(attempt.outcome for clone in clones for attempt in clone.attempts),
            versions=sum([len(await adapters.list_versions(student)) for student in students]),
            swept=sweep_report.removed_versions + sweep_report.voided_commits,
            violated=await violations(crowd.histories, remains),
        )


def _folders(folder: Path, names: Iterable[str]) -> list[Path]:
    folders = [folder / name for name in names]
    for path in folders:
        path.mkdir()
    return folders


def _write_base_model(folder: Path, models: Path) -> None:
    write_small_llama(folder, AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, models).path))
