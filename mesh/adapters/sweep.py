"""The sweeper: removes what dead workers left behind in a tenant, and finishes what they had decided.

Whatever was written lately may belong to a worker under way and is left alone. That is a courtesy: a worker that pauses
for longer loses its clone's version, but never publishes half of one. For the manifest's key decides between the two:
either the sweeper takes it, with a void document, before it removes the weights, or the worker does and they stay.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from mesh.adapters.documents import VOID, Documents
from mesh.adapters.manifest import Manifest
from mesh.adapters.publication import Publication
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt, ModelVersionNotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What the sweeper did.

    Attributes:
        removed: Folders of versions: weights that no commit names, and what was left of versions that were withdrawn.
        voided: Commits whose weights are gone.
        finished: Committed versions whose manifest was missing, and is there now.
        pointers: Pointers of students without versions.
        bytes: Size of what was removed.
    """

    removed: int = 0
    voided: int = 0
    finished: int = 0
    pointers: int = 0
    bytes: int = 0

    def __add__(self, other: "Swept") -> "Swept":
        return Swept(
            removed=self.removed + other.removed,
            voided=self.voided + other.voided,
            finished=self.finished + other.finished,
            pointers=self.pointers + other.pointers,
            bytes=self.bytes + other.bytes,
        )


class Sweeper:
    """Sweeps one tenant; any number may, at once. `AdapterStore` says what it means."""

    def __init__(self, documents: Documents, publication: Publication) -> None:
        self._documents = documents
        self._blobs = documents.blobs
        self._publication = publication

    async def sweep(self, *, older_than_seconds: float) -> Swept:
        """See `AdapterStore.sweep`."""
        entries = await self._blobs.entries(self._documents.keys.prefix)
        # After the listing, so that whatever has a manifest there has its commit here.
        commits = {manifest.ref: manifest async for manifest in self._documents.commits()}
        here = {entry.key for entry in entries}
        old = {entry.key for entry in entries if entry.age_seconds >= older_than_seconds}
        swept = Swept()
        for manifest in commits.values():
            if manifest.ref.weights_key not in here and self._commit_key(manifest) in old:
                swept += await self._void(manifest)
        for ref in self._refs_in(old):
            if not (ref in commits and {ref.weights_key, ref.manifest_key} <= here):
                swept += await self._tend(ref, commits.get(ref), older_than_seconds=older_than_seconds)
        for student_id in self._students_in(old) - {ref.student_id for ref in self._refs_in(here)}:
            swept += Swept(pointers=int(await self._documents.drop_stray_pointer(student_id)))
        return swept

    async def _void(self, manifest: Manifest) -> Swept:
        # Looked at again, as the listing may be older than the commit, and the weights are older than that.
        if await self._documents.has_weights(manifest.ref):
            return Swept()
        erased = await self._documents.revoke(manifest.recipe.clone_id)
        return Swept(voided=1, bytes=erased.bytes)

    async def _tend(self, ref: AdapterRef, manifest: Manifest | None, *, older_than_seconds: float) -> Swept:
        """Finishes or removes a version of which something is missing, or that no commit names."""
        # Looked at again, as the number may have been freed and taken since.
        entries = await self._blobs.entries(f"{ref}/")
        here = {entry.key for entry in entries}
        if not entries or any(entry.age_seconds < older_than_seconds for entry in entries):
            return Swept()
        if manifest is not None and ref.weights_key in here:
            return Swept(finished=int(await self._publication.finish(manifest)))
        if await self._is_condemned(ref, here):
            weights = await self._blobs.erase(ref.weights_key)
            rest = await self._blobs.erase(f"{ref}/")
            return Swept(removed=1, bytes=(weights + rest).bytes)
        return Swept()

    async def _is_condemned(self, ref: AdapterRef, here: AbstractSet[str]) -> bool:
        """Whether nobody will ever publish this version, or go on doing so."""
        if ref.manifest_key not in here:
            return await self._documents.create_once(ref.manifest_key, VOID) == VOID
        if ref.weights_key not in here:
            return True
        try:
            manifest = await self._documents.read_manifest(ref)
        except ModelVersionNotFound:
            return True
        except AdapterCorrupt:
            return False  # for a person to look at
        # A version without any commit was put there by hand.
        return await self._documents.read_commit(manifest.recipe.clone_id) == VOID

    def _commit_key(self, manifest: Manifest) -> str:
        return self._documents.keys.commit(manifest.recipe.clone_id)

    def _students_in(self, keys: Iterable[str]) -> set[str]:
        return {student_id for key in keys if (student_id := self._documents.keys.student_in(key)) is not None}

    def _refs_in(self, keys: Iterable[str]) -> set[AdapterRef]:
        """The versions of which something is among the keys."""
        refs = set()
        for key in keys:
            if (student_id := self._documents.keys.student_in(key)) is not None:
                version = self._documents.keys_of(student_id).version_in(key)
                if version is not None:
                    refs.add(self._documents.ref(student_id, version))
        return refs
