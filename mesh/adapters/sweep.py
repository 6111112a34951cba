"""The sweeper: removes what dead processes left behind in a tenant, and finishes what they had committed.

Recently written versions may belong to a running worker and stay. A worker that pauses for longer loses its clone's
version, but never publishes an incomplete one, because the manifest's key decides between the two: either the sweeper
takes the key with a void document before it removes the weights, or the worker takes it and the weights stay.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from hashlib import sha256

from mesh.adapters.blobs import BlobEntry
from mesh.adapters.documents import VOID, Documents, versions_in
from mesh.adapters.manifest import Manifest
from mesh.adapters.pointer import Pointer
from mesh.adapters.publication import Publication
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt, ModelVersionNotFound
from mesh.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What one sweep did.

    Attributes:
        removed_versions: Folders of versions that were removed: no commit names their weights, or they were withdrawn.
        voided_commits: Commits whose weights are gone, or that name another clone's version.
        finished_versions: Committed versions that lacked manifest or description, which have been written.
        corrected_pointers: Pointers that named versions that are gone, or no version at all.
        removed_bytes: Size of what was removed.
    """

    removed_versions: int = 0
    voided_commits: int = 0
    finished_versions: int = 0
    corrected_pointers: int = 0
    removed_bytes: int = 0

    def __add__(self, other: "SweepReport") -> "SweepReport":
        return SweepReport(
            removed_versions=self.removed_versions + other.removed_versions,
            voided_commits=self.voided_commits + other.voided_commits,
            finished_versions=self.finished_versions + other.finished_versions,
            corrected_pointers=self.corrected_pointers + other.corrected_pointers,
            removed_bytes=self.removed_bytes + other.removed_bytes,
        )


class Sweeper:
    """Sweeps one tenant. Several sweepers may run at the same time."""

    def __init__(self, documents: Documents, publication: Publication) -> None:
        self._documents = documents
        self._publication = publication

    async def sweep(self, *, older_than_seconds: float) -> SweepReport:
        """See `AdapterStore.sweep`."""
        return await _Sweep(self._documents, self._publication, older_than_seconds=older_than_seconds).run()


class _Sweep:
    """One pass over a tenant."""

    def __init__(self, documents: Documents, publication: Publication, *, older_than_seconds: float) -> None:
        self._documents = documents
        self._blobs = documents.blobs
        self._publication = publication
        self._older_than_seconds = older_than_seconds
        # Per version, the clones whose commits name it, with the digest of each commit. There is one, unless a worker
        # died after its number was freed and taken.
        self._claims: defaultdict[AdapterRef, dict[str, bytes]] = defaultdict(dict)

    async def run(self) -> SweepReport:
        # Commits first: weights are written before their commit, so weights that are missing afterwards are gone.
        async for manifest in self._documents.commits():
            self._claims[manifest.ref][manifest.recipe.clone_id] = _digest(manifest)
        report = SweepReport()
        async for student_id, entries in self._students():
            report += await self._sweep_student(student_id, entries)
        for ref, clone_ids in self._claims.items():
            for clone_id in clone_ids:
                report += await self._void_without_weights(ref, clone_id)
        # Past versions that a process left behind because it died between deleting a blob and forgetting it.
        await self._blobs.forget(self._documents.keys.commits)
        await self._blobs.forget_deleted(self._documents.keys.prefix)
        return report

    async def _sweep_student(self, student_id: str, entries: Iterable[BlobEntry]) -> SweepReport:
        present = {entry.key for entry in entries}
        keys = self._documents.keys_of(student_id)
        report = SweepReport()
        for version in versions_in(keys, present):
            ref = self._documents.ref(student_id, version)
            claims = self._claims.pop(ref, {}) if ref.has_weights(present) else {}
            try:
                if not await self._is_settled(ref, claims, present):
                    report += await self._settle(ref, claims)
            except AdapterCorrupt:
                # A person has to look at it, so it stays.
                _log.warning("sweep_skipped_corrupt_version", ref=str(ref))
        # After the versions, because the pointer may name a version that has just been removed.
        if keys.active in present:
            report += SweepReport(corrected_pointers=int(await self._clear_pointer(student_id)))
        return report

    async def _is_settled(self, ref: AdapterRef, claims: Mapping[str, bytes], present: AbstractSet[str]) -> bool:
        """Whether all is there, the manifest is what one clone committed, and no other clone names the version."""
        if len(claims) != 1:
            return False
        try:
            manifest = await self._documents.read_manifest(ref)
        except ModelVersionNotFound:
            return False
        return manifest.keys <= present and claims == {manifest.recipe.clone_id: _digest(manifest)}

    async def _settle(self, ref: AdapterRef, claims: Collection[str]) -> SweepReport:
        """Finishes or removes a version of which something is missing, or that not exactly one clone published."""
        # Listed again, as the number may have been freed and taken since.
        entries = [entry async for entry in self._blobs.entries(f"{ref}/")]
        present = {entry.key for entry in entries}
        if not entries or not self._are_old(entries):
            return SweepReport()
        outcomes = [await self._publication.finish(clone_id) for clone_id in claims]
        manifests = [manifest for manifest in outcomes if manifest is not None]
        report = SweepReport(
            finished_versions=sum(not manifest.keys <= present for manifest in manifests),
            voided_commits=len(outcomes) - len(manifests),
        )
        if manifests or not await self._is_condemned(ref, present):
            return report
        # The manifest last: while its key is taken, nobody can publish what is removed here.
        entries.sort(key=lambda entry: entry.key == ref.manifest_key)
        removed = await self._documents.remove(entries)
        await self._documents.take_back(ref.manifest_key, VOID)
        return report + SweepReport(removed_versions=1, removed_bytes=removed.bytes)

    async def _is_condemned(self, ref: AdapterRef, present: AbstractSet[str]) -> bool:
        """Whether nobody can publish this version any more."""
        if not ref.has_weights(present):
            return True
        try:
            manifest = await self._documents.read_manifest(ref)
        except ModelVersionNotFound:
            return await self._documents.create_once(ref.manifest_key, VOID) == VOID
        # A version without any commit was restored by hand, and stays.
        return await self._documents.is_void(manifest.recipe.clone_id)

    async def _clear_pointer(self, student_id: str) -> bool:
        """Removes versions that are gone from the pointer; returns whether that changed it."""
        keys = self._documents.keys_of(student_id)

        async def clear(pointer: Pointer) -> Pointer:
            refs = [self._documents.ref(student_id, version) for version in pointer.protected]
            missing_versions = {ref.version for ref in refs if await self._documents.is_gone(ref)}
            is_active = pointer.active is not None and pointer.active.ref.version not in missing_versions
            # A version loses its manifest first when it is retired, so here its other blobs count.
            present = set(versions_in(keys, await self._blobs.keys(keys.prefix))) if pointer.retiring else set()
            return replace(
                pointer,
                active=pointer.active if is_active else None,
                pinned=pointer.pinned - missing_versions,
                retiring=pointer.retiring & present,
            )

        try:
            move = await self._documents.move_pointer(student_id, clear)
        except AdapterCorrupt:
            # A person has to look at it, so it stays.
            _log.warning("sweep_skipped_corrupt_pointer", tenant=self._documents.keys.tenant)
            return False
        return move.after != move.before

    async def _void_without_weights(self, ref: AdapterRef, clone_id: str) -> SweepReport:
        entries = [entry async for entry in self._blobs.entries(self._documents.keys.commit(clone_id))]
        # Weights are written before their commit: if they are missing now, they are gone.
        if not self._are_old(entries) or await self._documents.has_weights(ref):
            return SweepReport()
        removed = await self._documents.revoke(clone_id)
        return SweepReport(voided_commits=1, removed_bytes=removed.bytes)

    async def _students(self) -> AsyncIterator[tuple[str, list[BlobEntry]]]:
        """Lists each student with the blobs of the student's folder; a listing is sorted, so one pass is enough."""
        student_id: str | None = None
        entries: list[BlobEntry] = []
        async for entry in self._blobs.entries(self._documents.keys.prefix):
            owner = self._documents.keys.student_in(entry.key)
            if owner != student_id:
                if student_id is not None:
                    yield student_id, entries
                student_id, entries = owner, []
            entries.append(entry)
        if student_id is not None:
            yield student_id, entries

    def _are_old(self, entries: Iterable[BlobEntry]) -> bool:
        return all(entry.age_seconds >= self._older_than_seconds for entry in entries)


def _digest(manifest: Manifest) -> bytes:
    return sha256(manifest.to_json()).digest()
