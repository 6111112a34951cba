"""The adapter store: stages, activates, fetches, retires and deletes the versions of students' adapters.

A version exists once its manifest does, and the manifest is written after the weights: a crash in between publishes
nothing. Every write is conditional, so no version is ever overwritten and no two publishers undo each other's work.
Everything that is read is validated.

Knows no vendor: `Blobs` holds the bytes. Keeps nothing in memory; its callers cache.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace

from mesh.adapters.blobs import Blobs
from mesh.adapters.documents import Documents
from mesh.adapters.inspection import AdapterLimits
from mesh.adapters.manifest import Manifest, Recipe
from mesh.adapters.pointer import ActiveAdapter, Pointer
from mesh.adapters.publication import CloneVoided, Publication
from mesh.adapters.reading import OutdatedPage, Reading, StoredAdapter, VersionPage
from mesh.adapters.ref import DEFAULT_TENANT, AdapterRef
from mesh.adapters.retention import RemovedAdapters, Retention
from mesh.adapters.sweep import Sweeper, SweepReport
from mesh.errors import ModelVersionNotFound, adapter_errors_name

__all__ = [
    "Activation",
    "AdapterStore",
    "Announce",
    "CloneVoided",
    "OutdatedPage",
    "RemovedAdapters",
    "StoredAdapter",
    "SweepReport",
    "VersionPage",
]

# Called with the active version each time an activation ends; must not raise.
Announce = Callable[[ActiveAdapter], Awaitable[None]]


async def _announce_to_nobody(_active: ActiveAdapter) -> None:
    """The default: others learn of a new version when they next read the pointer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What one activation changed, read and written in one compare-and-swap.

    Attributes:
        previous: The version that was active before; None if there was none.
        current: The version that is active now; equal to `previous` if nothing changed.
    """

    previous: ActiveAdapter | None
    current: ActiveAdapter


class AdapterStore:
    """One tenant's adapters.

    Every method raises `AdapterStoreUnavailable` when the store does not answer, and `InvalidField` for a malformed id.

    Args:
        blobs: The object store.
        tenant: The school or district that owns the adapters.
        limits: The largest adapter that is accepted.
        announce: Called after each activation, to tell other processes.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        tenant: str = DEFAULT_TENANT,
        limits: AdapterLimits | None = None,
        announce: Announce = _announce_to_nobody,
    ) -> None:
        self._blobs = blobs
        self._announce = announce
        limits = limits or AdapterLimits()
        self._documents = Documents(blobs, tenant=tenant)
        self._reading = Reading(self._documents, limits=limits)
        self._publication = Publication(self._documents, limits=limits)
        self._retention = Retention(self._documents)
        self._sweeper = Sweeper(self._documents, self._publication)

    async def stage(self, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
        """Writes the next version without making it active.

        A clone makes one version, however often it is staged: once one call has committed, every other call returns
        that version's manifest and ignores its own weights. So a worker that does not know whether it crashed before or
        after the commit can stage again.

        Raises:
            AdapterCorrupt, AdapterIncompatible: The weights fail inspection; nothing is written.
            AdapterIncompatible: The manifest is too large; nothing of it stays.
            CloneVoided: The clone must not publish any more; this call removes what it has written.
            PublishConflict: Other publishers kept taking the next number, or the clone belongs to another student.
        """
        with adapter_errors_name(student_id):
            return await self._publication.stage(student_id, weights, recipe=recipe)

    async def void(self, clone_id: str) -> Manifest | None:
        """Makes sure that the clone publishes nothing from now on, even if a paused worker resumes; repeatable.

        Returns:
            The version that the clone has published already: it is too late then, and the caller may activate or retire
            it. None if the clone has published nothing, or its version has been removed.
        """
        return await self._publication.void(clone_id)

    async def activate(self, student_id: str, version: int, *, only_forward: bool = False) -> Activation:
        """Moves the pointer to a version.

        Args:
            student_id: The student.
            version: A published version, earlier or later than the active one.
            only_forward: Leave the pointer alone if it names a later version, as a publisher that was overtaken must.

        Raises:
            ModelVersionNotFound: The student has no such version, or it is being retired.
            AdapterCorrupt: The version's manifest or the pointer does not parse.
            PublishConflict: Others kept moving the pointer.
        """
        ref = self.ref(student_id, version)

        async def aim(pointer: Pointer) -> Pointer:
            # Read after the pointer: a retirement in between moves the pointer, and this starts again.
            target = ActiveAdapter(ref=ref, sha256=(await self._reading.read_manifest(ref)).sha256)
            if version in pointer.retiring:
                raise ModelVersionNotFound(student_id=student_id, version=version)
            later = pointer.active.ref if only_forward and pointer.active is not None else ref
            # A version that is gone, as after a deletion that was cut off, overtakes nobody.
            if later.version > version and not await self._documents.is_gone(later):
                return pointer
            return replace(pointer, active=target)

        with adapter_errors_name(student_id, version):
            move = await self._documents.move_pointer(student_id, aim)
            assert move.after.active is not None, "neither branch above leaves the pointer empty"
            activation = Activation(previous=move.before.active, current=move.after.active)
            if activation.current.ref == ref:
                # Also if it was active already: whoever moved the pointer may have died before the announcement.
                await self._announce(activation.current)
            return activation

    async def resolve_active(self, student_id: str) -> ActiveAdapter | None:
        """The student's active version, or None if the student has none.

        Raises:
            AdapterCorrupt: The pointer does not parse.
        """
        with adapter_errors_name(student_id):
            return (await self._documents.read_pointer(student_id)).active

    async def fetch(
        self, ref: AdapterRef, *, sha256: str | None = None, base_digest: str | None = None
    ) -> StoredAdapter:
        """Reads a version and validates it: manifest, size, sha256, then every tensor.

        Args:
            ref: The version.
            sha256: Expected identity of the weights; a version with another one is refused before its weights are read.
            base_digest: Digest of the Main Brain that it must belong to, or it is refused before its weights are read.

        Raises:
            ModelVersionNotFound: The student has no such version.
            AdapterOutdated: It belongs to another Main Brain.
            AdapterCorrupt: The stored bytes are not what was published.
            AdapterIncompatible: The version is above this store's limits.
        """
        with adapter_errors_name(ref.student_id, ref.version):
            return await self._reading.fetch(ref, sha256=sha256, base_digest=base_digest)

    async def read_manifest(self, student_id: str, version: int) -> Manifest:
        """Returns the manifest of one published version.

        Raises:
            ModelVersionNotFound: The student has no such version.
            AdapterCorrupt: The manifest does not parse.
        """
        with adapter_errors_name(student_id, version):
            return await self._reading.read_manifest(self.ref(student_id, version))

    async def read_sha256(self, ref: AdapterRef) -> str:
        """Returns the identity of a version's weights, in one read: the cheapest proof that the version exists.

        Raises:
            ModelVersionNotFound: The student has no such version.
            AdapterCorrupt: The version's manifest does not parse.
        """
        with adapter_errors_name(ref.student_id, ref.version):
            return (await self._documents.read_manifest(ref)).sha256

    async def list_versions(self, student_id: str) -> list[Manifest]:
        """Returns the manifests of all versions, oldest first; skips and logs those that do not parse."""
        return await self._reading.list_versions(student_id)

    async def list_page(self, student_id: str, *, size: int, below: int | None = None) -> VersionPage:
        """Returns a page of the versions, newest first; skips and logs those that do not parse.

        Args:
            student_id: The student.
            size: Most versions of the page.
            below: Return only versions below this number; None starts with the newest.
        """
        return await self._reading.list_page(student_id, size=size, below=below)

    async def list_outdated(self, base_digest: str, *, size: int, after: str | None = None) -> OutdatedPage:
        """Returns a page of the students whose active version belongs to another Main Brain than this one.

        Skips and logs students whose documents do not parse. A page may hold nobody and still not be the last.

        Args:
            base_digest: Digest of the Main Brain.
            size: Most students to look at, 1 to 1000.
            after: `next_after` of the page before; None starts with the first student.
        """
        return await self._reading.list_outdated(base_digest, size=size, after=after)

    async def pin(self, student_id: str, version: int) -> None:
        """Keeps a version from being retired; repeatable.

        Raises:
            ModelVersionNotFound: The student has no such version, or it is being retired.
            PublishConflict: Others kept moving the pointer.
        """
        with adapter_errors_name(student_id, version):
            await self._retention.pin(student_id, version)

    async def unpin(self, student_id: str, version: int) -> None:
        """Lets a version be retired again; repeatable.

        Raises:
            ModelVersionNotFound: The student has no such version, or it is being retired.
            PublishConflict: Others kept moving the pointer.
        """
        with adapter_errors_name(student_id, version):
            await self._retention.unpin(student_id, version)

    async def list_pinned(self, student_id: str) -> frozenset[int]:
        """Returns the numbers of the pinned versions."""
        with adapter_errors_name(student_id):
            return (await self._documents.read_pointer(student_id)).pinned

    async def retire(self, student_id: str, *, keep: int) -> list[int]:
        """Removes all versions except the newest, the active and the pinned ones; returns the removed numbers.

        A brain that holds a removed version goes on answering with it; a later request for it fails. The next call
        finishes a call that was cut off.

        Args:
            student_id: The student.
            keep: How many of the newest versions stay, 1 or more.

        Raises:
            PublishConflict: Others kept moving the pointer.
        """
        with adapter_errors_name(student_id):
            return await self._retention.retire(student_id, keep=keep)

    async def delete_student(self, student_id: str, *, clone_ids: Collection[str] = ()) -> RemovedAdapters:
        """Removes every object of the student, past versions included, and makes the commits of its clones void.

        Repeatable; repeat a call that was cut off. A clone that has not committed yet is unknown here: void it first,
        or it may publish afterwards, as the first version of a new student.

        Args:
            student_id: The student.
            clone_ids: Clones of the student. They lead to the commits that no manifest leads to. Commits of others are
                found by reading all of the tenant, which takes long.

        Raises:
            PublishConflict: Others kept writing for this student.
        """
        with adapter_errors_name(student_id):
            return await self._retention.delete_student(student_id, clone_ids=clone_ids)

    async def sweep(self, *, older_than_seconds: float) -> SweepReport:
        """Removes what dead processes left behind in the whole tenant; repeatable, also while others work.

        Reads every manifest and every commit that is not void, so call it about once an hour.

        Args:
            older_than_seconds: Incomplete versions younger than this stay. Set it above the longest time that a worker
                may take to publish.
        """
        return await self._sweeper.sweep(older_than_seconds=older_than_seconds)

    def ref(self, student_id: str, version: int) -> AdapterRef:
        """Returns the name of a version of this tenant; the version need not exist."""
        return self._documents.ref(student_id, version)

    async def check(self) -> None:
        """Returns if the store answers; cheap enough for a health check."""
        await self._blobs.check()
