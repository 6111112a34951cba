"""What must hold after any chaos, checked from outside: in the feeds, in S3, and at the brain."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.brain.v1 import brain_service_pb2_grpc as brain_grpc
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import cloning_service_pb2_grpc as pb_grpc
from google.protobuf import json_format
from redis.asyncio import Redis

from mesh.adapters.manifest import Manifest
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from testing.chaos.crowd import FINAL, CloneHistory
from testing.leftovers import content_of_valkey, leftovers


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """Where to look once every clone has ended and the leftovers are swept.

    Attributes:
        cloning: Any cloning server.
        blobs: The bucket, of which `adapters` is the default tenant's view.
        redis: Valkey.
    """

    cloning: "pb_grpc.CloningServiceAsyncStub"
    brain: "brain_grpc.BrainServiceAsyncStub"
    adapters: AdapterStore
    blobs: S3Blobs
    redis: Redis
    tenant: str


def lost(histories: Sequence[CloneHistory]) -> list[str]:
    """The clones that were accepted, and then forgotten or never ended; each with its last status."""
    return [
        f"{history.clone_id}: {'not found after ' if history.is_gone else ''}{history.status or 'accepted'}"
        for history in histories
        if history.status not in FINAL
    ]


async def doubled(histories: Sequence[CloneHistory], remains: Remains) -> list[str]:
    """The clones that no caller was answered with: their order was accepted twice."""
    accepted_ids = {history.clone_id for history in histories}
    return [clone_id async for clone_id in _clone_ids(remains) if clone_id not in accepted_ids]


async def _clone_ids(remains: Remains) -> AsyncIterator[str]:
    request = pb.ListClonesRequest(page_size=100)
    while True:
        page = await remains.cloning.ListClones(request)
        for clone in page.clones:
            yield clone.clone_id
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def violations(
    histories: Sequence[CloneHistory], remains: Remains, *, deleted: Sequence[CloneHistory]
) -> list[str]:
    """Describes each invariant that does not hold.

    Args:
        histories: Of students who stay.
        remains: Where to look.
        deleted: Of students who were deleted.
    """
    # `lost` tells of the others.
    histories = [history for history in histories if history.status in FINAL]
    faults = [fault for history in histories for fault in _of_feed(history)]
    faults += [fault for history in histories async for fault in _of_clone(history, remains)]
    students = sorted({history.student_id for history in histories})
    versions = {student: await remains.adapters.list_versions(student) for student in students}
    faults += _of_versions(histories, [manifest for manifests in versions.values() for manifest in manifests])
    for student, manifests in versions.items():
        faults += [fault async for fault in _of_student(student, manifests, remains)]
    faults += [f"orphan {key}" for key in sorted(await leftovers(remains.blobs, remains.adapters, remains.tenant))]
    faults += [fault async for fault in _of_deleted(deleted, remains)]
    health = await remains.cloning.GetHealth(pb.GetHealthRequest())
    if health.queued_clones or health.running_clones:
        faults.append(f"{health.queued_clones} clones wait and {health.running_clones} run after the last has ended")
    return faults


def _of_feed(history: CloneHistory) -> Iterator[str]:
    """Each change came once and in order, progress never decreased within an attempt, and only the last is final."""
    sequences = [change.sequence for change in history.changes]
    if sequences != list(range(1, len(sequences) + 1)):
        yield f"{history.clone_id}: its changes came as {sequences}"
    if [change.status in FINAL for change in history.changes] != [False] * (len(sequences) - 1) + [True]:
        yield f"{history.clone_id}: its final state did not come once and last"
    for before, after in zip(history.changes, history.changes[1:], strict=False):
        if before.attempt == after.attempt and before.progress > after.progress:
            yield f"{history.clone_id}: progress decreased from {before.progress} to {after.progress}"
        if before.attempt > after.attempt:
            yield f"{history.clone_id}: attempt {after.attempt} came after {before.attempt}"


async def _of_clone(history: CloneHistory, remains: Remains) -> AsyncIterator[str]:
    """The clone completed, or failed with a reason, and its feed can be read again as it came."""
    clone = await remains.cloning.GetClone(pb.GetCloneRequest(clone_id=history.clone_id))
    if clone.status != history.status or clone.status not in ("completed", "failed"):
        yield f"{history.clone_id}: is {clone.status}, but its feed says {history.status}"
    if clone.status == "failed" and not clone.error.details:
        yield f"{history.clone_id}: failed without a reason"
    if [attempt.number for attempt in clone.attempts] != list(range(1, len(clone.attempts) + 1)):
        yield f"{history.clone_id}: has the attempts {[attempt.number for attempt in clone.attempts]}"
    request = pb.WatchCloneRequest(clone_id=history.clone_id, after_sequence=0)
    changes = [change async for change in remains.cloning.WatchClone(request)]
    if list(map(_stored, changes)) != list(map(_stored, history.changes)):
        yield f"{history.clone_id}: its feed reads differently now"


def _stored(change: pb.WatchCloneResponse) -> dict[str, object]:
    """What every reader of a change gets: all but whether the model still answers."""
    stored = pb.WatchCloneResponse()
    stored.CopyFrom(change)
    stored.model.ClearField("active")
    # As a dictionary: the order of an error's facts in bytes is not defined.
    return json_format.MessageToDict(stored)


def _of_versions(histories: Sequence[CloneHistory], manifests: Sequence[Manifest]) -> Iterator[str]:
    """Each completed clone made one version, the one in its feed; no other clone made any."""
    version_counts = Counter(manifest.recipe.clone_id for manifest in manifests)
    digests = {
        history.clone_id: history.changes[-1].model.sha256 for history in histories if history.status == "completed"
    }
    for clone_id in sorted(version_counts.keys() | digests.keys()):
        if version_counts[clone_id] != (1 if clone_id in digests else 0):
            yield f"{clone_id}: {version_counts[clone_id]} versions, completed: {clone_id in digests}"
    for manifest in manifests:
        if digests.get(manifest.recipe.clone_id, manifest.sha256) != manifest.sha256:
            yield f"{manifest.recipe.clone_id}: {manifest.ref} is not the version in its feed"


async def _of_student(student_id: str, manifests: Sequence[Manifest], remains: Remains) -> AsyncIterator[str]:
    """The student's pointer leads to the newest version, and the brain replies with that version."""
    active = await remains.adapters.resolve_active(student_id)
    newest = max(manifests, key=lambda manifest: manifest.ref.version, default=None)
    if (active and active.sha256) != (newest and newest.sha256):
        yield f"{student_id}: {active} is active, {newest and newest.ref} is the newest"
    if active is None:
        return
    request = brain_pb.GenerateRequest(
        prompt="What do roots do?",
        context=brain_pb.StudentContext(student_id=student_id),
        max_tokens=1,
        adapter_policy=brain_pb.ADAPTER_POLICY_REQUIRE,
    )
    reply = await remains.brain.Generate(request)
    if reply.adapter.sha256 != active.sha256:
        yield f"{student_id}: the brain answers with {reply.adapter.sha256}, active is {active.sha256}"


async def _of_deleted(deleted: Sequence[CloneHistory], remains: Remains) -> AsyncIterator[str]:
    """The clones of deleted students ended before anybody forgot them, and no store holds anything of either."""
    ids = {history.student_id for history in deleted} | {history.clone_id for history in deleted}
    for history in deleted:
        if not history.has_ended:
            yield f"{history.clone_id}: is {history.status or 'accepted'} although its student was deleted"
    valkey_content = await content_of_valkey(remains.redis)
    keys = await remains.blobs.keys("")
    for deleted_id in sorted(ids):
        if deleted_id in valkey_content:
            yield f"{deleted_id}: is in Valkey although the student was deleted"
    for student_id in sorted({history.student_id for history in deleted}):
        for key in keys:
            if f"/{student_id}/" in key:
                yield f"{student_id}: {key} is in S3 although the student was deleted"
