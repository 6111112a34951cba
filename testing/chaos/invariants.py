"""What must hold after any chaos, looked at from outside: in the feeds, in S3, and at the brain."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.brain.v1 import brain_service_pb2_grpc as brain_grpc
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import cloning_service_pb2_grpc as pb_grpc
from google.protobuf import json_format

from mesh.adapters.manifest import Manifest
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from testing.chaos.crowd import FINAL, Heard
from testing.leftovers import leftovers


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is there once all is quiet and swept.

    Attributes:
        cloning: Any cloning server.
        blobs: The bucket, of which `adapters` is the default tenant's view.
    """

    cloning: "pb_grpc.CloningServiceAsyncStub"
    brain: "brain_grpc.BrainServiceAsyncStub"
    adapters: AdapterStore
    blobs: S3Blobs
    tenant: str


async def violations(heard: Sequence[Heard], remains: Remains) -> list[str]:
    """Every invariant that does not hold, in words."""
    found = [fault for one in heard for fault in _of_feed(one)]
    found += [fault for one in heard async for fault in _of_clone(one, remains)]
    students = sorted({one.student_id for one in heard})
    versions = {student: await remains.adapters.list_versions(student) for student in students}
    found += _of_versions(heard, [manifest for manifests in versions.values() for manifest in manifests])
    for student, manifests in versions.items():
        found += [fault async for fault in _of_student(student, manifests, remains)]
    found += [f"orphan {key}" for key in sorted(await leftovers(remains.blobs, remains.adapters, remains.tenant))]
    health = await remains.cloning.GetHealth(pb.GetHealthRequest())
    if health.queued_clones or health.running_clones:
        found.append(f"{health.queued_clones} clones wait and {health.running_clones} run after the last has ended")
    return found


def _of_feed(heard: Heard) -> Iterator[str]:
    """Each change was told once and in order, progress never went back within an attempt, and the last is the end."""
    told = [change.sequence for change in heard.changes]
    if told != list(range(1, len(told) + 1)):
        yield f"{heard.clone_id}: its changes were told as {told}"
    if [change.status in FINAL for change in heard.changes] != [False] * (len(told) - 1) + [True]:
        yield f"{heard.clone_id}: its end was not told once and last"
    for before, after in zip(heard.changes, heard.changes[1:], strict=False):
        if before.attempt == after.attempt and before.progress > after.progress:
            yield f"{heard.clone_id}: progress went back from {before.progress} to {after.progress}"
        if before.attempt > after.attempt:
            yield f"{heard.clone_id}: attempt {after.attempt} came after {before.attempt}"


async def _of_clone(heard: Heard, remains: Remains) -> AsyncIterator[str]:
    """It ended, with a reason if badly, and its feed can be read again as it was told."""
    clone = await remains.cloning.GetClone(pb.GetCloneRequest(clone_id=heard.clone_id))
    if clone.status != heard.status or clone.status not in ("completed", "failed"):
        yield f"{heard.clone_id}: is {clone.status} and was told to be {heard.status}"
    if clone.status == "failed" and not clone.error.details:
        yield f"{heard.clone_id}: failed without a reason"
    if [attempt.number for attempt in clone.attempts] != list(range(1, len(clone.attempts) + 1)):
        yield f"{heard.clone_id}: has the attempts {[attempt.number for attempt in clone.attempts]}"
    request = pb.WatchCloneRequest(clone_id=heard.clone_id, after_sequence=0)
    again = [change async for change in remains.cloning.WatchClone(request)]
    # As words: the bytes of an error's facts are in no order.
    if list(map(json_format.MessageToDict, again)) != list(map(json_format.MessageToDict, heard.changes)):
        yield f"{heard.clone_id}: its feed reads otherwise than it was told"


def _of_versions(heard: Sequence[Heard], manifests: Sequence[Manifest]) -> Iterator[str]:
    """Whoever completed made the one version that was told; nobody else made any."""
    made = Counter(manifest.recipe.clone_id for manifest in manifests)
    completed = {one.clone_id: one.changes[-1].model.sha256 for one in heard if one.status == "completed"}
    for clone_id in sorted(made.keys() | completed.keys()):
        if made[clone_id] != (1 if clone_id in completed else 0):
            yield f"{clone_id}: {made[clone_id]} versions, completed: {clone_id in completed}"
    for manifest in manifests:
        if completed.get(manifest.recipe.clone_id, manifest.sha256) != manifest.sha256:
            yield f"{manifest.recipe.clone_id}: {manifest.ref} is not what was told"


async def _of_student(student_id: str, manifests: Sequence[Manifest], remains: Remains) -> AsyncIterator[str]:
    """The student's pointer leads to the newest version, and the brain answers with that one."""
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
