"""AIVO with two cloning servers, a crowd of students, and faults that strike its parts while clones run.

Training is real. The base model is small and random, so that a clone takes seconds. A seed decides which students come
and what is struck, but not how the processes are scheduled: a failure may take several runs to reproduce.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub

from mesh.adapters.ref import DEFAULT_TENANT
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import GateNotPassed
from mesh.rpc.errors import error_from
from mesh.valkey.connection import open_redis
from testing.chaos.aivo import BUCKET, Aivo, open_aivo
from testing.chaos.crowd import Crowd
from testing.chaos.faults import Faults
from testing.chaos.invariants import Remains, doubled, lost, violations
from testing.chaos.recovery import Watched, faults_of, watch_servers

AT_ONCE = 4
# A strike waits until a clone reaches a random state, but no longer than this.
STATES = ("loading_base_model", "creating_adapter", "fine_tuning", "optimizing", "saving", "deploying", "completed")
STATE_SECONDS = 20.0
# Then for a random time, up to this.
MOMENT_SECONDS = 0.5
# From the last strike to the end of the last clone, and from the start of a canary to its end: enough for several
# restarts, leases and pauses.
QUIET_SECONDS = 240.0
# Of the accepted clones, without those that the gate had to refuse.
LEAST_COMPLETED_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a run.

    Attributes:
        strikes: Number of strikes per kind of fault.
        accepted: Number of accepted clones of students who stay, canaries included.
        completed: Number of those that completed.
        repeats_refused: Number of those that learned what the student's model knew, so that the gate refused them.
        failed: Number of failed clones per reason.
        lost: The accepted clones that were forgotten or never ended.
        doubled: The clones that nobody was told of: their order was accepted twice.
        deleted: Number of students who were deleted.
        canaries: Number of canaries that completed. There is one after each strike of the plan.
        attempts: Number of attempts of all clones per outcome.
        versions: Number of versions in S3 at the end.
        swept: Number of folders and commits of dead workers that the sweep removed.
        violated: The invariants that do not hold.
    """

    strikes: Counter[str]
    accepted: int
    completed: int
    repeats_refused: int
    failed: Counter[str]
    lost: Sequence[str]
    doubled: Sequence[str]
    deleted: int
    canaries: int
    attempts: Counter[str]
    versions: int
    swept: int
    violated: Sequence[str]

    @property
    def completed_share(self) -> float:
        """Share of the accepted clones, without those that the gate had to refuse, that completed; 0 of none."""
        return self.completed / max(1, self.accepted - self.repeats_refused)

    @property
    def faults(self) -> list[str]:
        """Why this run shows a fault of AIVO; empty if it shows none."""
        return list(self._faults())

    def _faults(self) -> Iterator[str]:
        if self.completed_share < LEAST_COMPLETED_SHARE:
            yield f"{self.completed} of {self.accepted} accepted clones completed; failed: {dict(self.failed)}"
        yield from (f"lost: {clone}" for clone in self.lost)
        yield from (f"doubled: {clone}" for clone in self.doubled)
        yield from self.violated


async def run(
    folder: Path, *, models: Path, seed: int, outage_seconds: float, plan: Callable[[tuple[str, ...]], Iterable[str]]
) -> Report:
    """Runs clones while faults strike, then checks what is left.

    Args:
        folder: For the data and logs of all parts.
        models: Cache of base models, for the tokenizer of the default one.
        seed: Of every random choice.
        outage_seconds: How long S3 is down or hangs when it is struck.
        plan: Takes the kinds of faults; yields those that strike, one after another. Clones are started until it ends.
    """
    chance = random.Random(seed)
    async with contextlib.AsyncExitStack() as resources:
        aivo = await resources.enter_async_context(open_aivo(folder, models=models, outage_seconds=outage_seconds))
        servers = await resources.enter_async_context(watch_servers(aivo))
        assert await faults_of(servers) == [], "all is well before the first strike"
        stubs = [
            CloningServiceStub(await resources.enter_async_context(grpc.aio.insecure_channel(server.address)))
            for server in aivo.cloning
        ]
        crowd = Crowd(stubs, chance=chance)
        faults = Faults(aivo, crowd, chance=chance)
        violated: list[str] = []
        canaries = 0
        async with asyncio.TaskGroup() as tasks:
            cloning = tasks.create_task(crowd.clone(at_once=AT_ONCE))
            for kind in plan(faults.kinds):
                await _moment(crowd, chance)
                await faults.strike(kind)
                after_strike = await _check_recovery(servers, crowd)
                violated += [f"after {kind}: {fault}" for fault in after_strike]
                canaries += not after_strike
            crowd.close()
            await asyncio.wait((cloning,), timeout=QUIET_SECONDS)
            # What has not ended is lost.
            cloning.cancel()
        violated += [f"in the end: {fault}" for fault in await faults_of(servers)]
        return await _report(aivo, crowd, strikes=faults.counts, canaries=canaries, violated=violated)


async def _moment(crowd: Crowd, chance: random.Random) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(crowd.reach(chance.choice(STATES)), STATE_SECONDS)
    await asyncio.sleep(chance.uniform(0, MOMENT_SECONDS))


async def _check_recovery(servers: Sequence[Watched], crowd: Crowd) -> list[str]:
    """What is not as it should be some time after a strike; empty if all is well and a new clone completes."""
    faults = await faults_of(servers)
    try:
        canary = await asyncio.wait_for(crowd.canary(), QUIET_SECONDS)
    except TimeoutError:
        return [*faults, "the canary did not end"]
    return faults if canary.status == "completed" else [*faults, f"the canary {canary.status}"]


async def _report(aivo: Aivo, crowd: Crowd, *, strikes: Counter[str], canaries: int, violated: Sequence[str]) -> Report:
    async with contextlib.AsyncExitStack() as clients:
        blobs = await clients.enter_async_context(S3Blobs(bucket=BUCKET, endpoint_url=aivo.s3.url))
        brain = await clients.enter_async_context(grpc.aio.insecure_channel(aivo.brain.address))
        cloning = await clients.enter_async_context(grpc.aio.insecure_channel(aivo.cloning[0].address))
        redis = await clients.enter_async_context(open_redis(aivo.redis.url))
        adapters = AdapterStore(blobs, tenant=DEFAULT_TENANT)
        sweep_report = await adapters.sweep(older_than_seconds=0)
        stub = CloningServiceStub(cloning)
        remains = Remains(
            cloning=stub,
            brain=BrainServiceStub(brain),
            adapters=adapters,
            blobs=blobs,
            redis=redis,
            tenant=DEFAULT_TENANT,
        )
        histories = [history for history in crowd.histories if not history.is_gone]
        clones = [await stub.GetClone(pb.GetCloneRequest(clone_id=history.clone_id)) for history in histories]
        reasons = {clone.clone_id: error_from(clone.error).reason for clone in clones if clone.status == "failed"}
        students = {history.student_id for history in histories}
        return Report(
            strikes=strikes,
            accepted=len(crowd.histories),
            completed=sum(clone.status == "completed" for clone in clones),
            repeats_refused=sum(
                history.is_repeat and reasons.get(history.clone_id) == GateNotPassed.reason for history in histories
            ),
            failed=Counter(reasons.values()),
            lost=lost(crowd.histories),
            doubled=await doubled(crowd.histories, remains),
            deleted=len({history.student_id for history in crowd.deleted}),
            canaries=canaries,
            attempts=Counter(attempt.outcome for clone in clones for attempt in clone.attempts),
            versions=sum([len(await adapters.list_versions(student)) for student in students]),
            swept=sweep_report.removed_versions + sweep_report.voided_commits,
            violated=[*violated, *await violations(crowd.histories, remains, deleted=crowd.deleted)],
        )
