"""The sweeper: removes what dead workers left behind in a tenant, and finishes what they had decided.

Whatever was written lately may belong to a worker under way and is left alone. That is a courtesy: a worker that pauses
for longer loses its clone's version, but never publishes half of one. For the manifest's key decides between the two:
either the sweeper takes it, with a void document, before it removes the weights, or the worker does and they stay.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from mesh.adapters.blobs import Entry
from mesh.adapters.documents import VOID, Documents, versions_in
from mesh.adapters.pointer import Pointer
from mesh.adapters.publication import Publication
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt, ModelVersionNotFound
from mesh.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What the sweeper did.

    Attributes:
        removed: Folders of versions: weights that no commit names, and what was left of versions that were withdrawn.
        voided: Commits whose weights are gone, or that name another clone's version.
        finished: Committed versions whose manifest was missing, and is there now.
        pointers: Pointers that named versions that are gone.
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
        self._publication = publication

    async def sweep(self, *, older_than_seconds: float) -> Swept:
        """See `AdapterStore.sweep`."""
        return await _Sweep(self._documents, self._publication, older_than_seconds=older_than_seconds).run()


class _Sweep:
    """One pass over a tenant."""

    def __init__(self, documents: Documents, publication: Publication, *, older_than_seconds: float) -> None:
        self._documents = documents
        self._blobs = documents.blobs
        self._publication = publication
        self._older_than_seconds = older_than_seconds
        # Per version, the clones whose commits name it, each with its commit's tag. There is one, unless a worker died
        # after its number was freed and taken.
        self._claims: defaultdict[AdapterRef, dict[str, str]] = defaultdict(dict)

    async def run(self) -> Swept:
        # The commits before the weights: weights come before their commit, so those that are missing then are gone.
        async for commit in self._documents.commits():
            self._claims[commit.manifest.ref][commit.manifest.recipe.clone_id] = commit.etag
        swept = Swept()
        async for student_id, entries in self._students():
            swept += await self._sweep_student(student_id, entries)
        for ref, clone_ids in self._claims.items():
            for clone_id in clone_ids:
                swept += await self._void_without_weights(ref, clone_id)
        # Past versions that a process left behind because it died between a deletion and forgetting what it deleted.
        await self._blobs.forget(self._documents.keys.commits)
        await self._blobs.forget_deleted(self._documents.keys.prefix)
        return swept

    async def _sweep_student(self, student_id: str, entries: Iterable[Entry]) -> Swept:
        etags = {entry.key: entry.etag for entry in entries}
        keys = self._documents.keys_of(student_id)
        swept = Swept()
        for version in versions_in(keys, etags):
            ref = self._documents.ref(student_id, version)
            claims = self._claims.pop(ref, {}) if ref.weights_key in etags else {}
            try:
                if not await self._is_settled(ref, claims, manifest_etag=etags.get(ref.manifest_key)):
                    swept += await self._settle(ref, claims)
            except AdapterCorrupt:
                # It stays, for a person to look at.
                _log.warning("sweep_skipped_corrupt_version", ref=str(ref))
        # After the versions, as the pointer may name one that was removed just now.
        if keys.active in etags:
            swept += Swept(pointers=int(await self._clear_pointer(student_id)))
        return swept

    async def _is_settled(self, ref: AdapterRef, claims: Mapping[str, str], *, manifest_etag: str | None) -> bool:
        """Whether the version is published by the one clone whose commit names it."""
        if len(claims) != 1 or manifest_etag is None:
            return False
        ((clone_id, commit_etag),) = claims.items()
        if manifest_etag == commit_etag:
            # Equal tags mean equal bytes. The reverse does not hold in every store.
            return True
        try:
            return (await self._documents.read_manifest(ref)).recipe.clone_id == clone_id
        except ModelVersionNotFound:
            return False

    async def _settle(self, ref: AdapterRef, claims: Collection[str]) -> Swept:
        """Finishes or removes a version of which something is missing, or that not exactly one clone published."""
        # Listed again, as the number may have been freed and taken since.
        entries = [entry async for entry in self._blobs.entries(f"{ref}/")]
        present = {entry.key for entry in entries}
        if not entries or not self._are_old(entries):
            return Swept()
        finished = [await self._publication.finish(clone_id) is not None for clone_id in claims]
        swept = Swept(
            finished=sum(finished) if ref.manifest_key not in present else 0, voided=len(finished) - sum(finished)
        )
        if any(finished) or not await self._is_condemned(ref, present):
            return swept
        # The manifest last: while its key is taken, nobody can publish what is removed here.
        entries.sort(key=lambda entry: entry.key == ref.manifest_key)
        removed = await self._documents.remove(entries)
        await self._documents.take_back(ref.manifest_key, VOID)
        return swept + Swept(removed=1, bytes=removed.bytes)

    async def _is_condemned(self, ref: AdapterRef, present: AbstractSet[str]) -> bool:
        """Whether nobody will ever publish this version, or go on doing so."""
        if ref.weights_key not in present:
            return True
        try:
            manifest = await self._documents.read_manifest(ref)
        except ModelVersionNotFound:
            return await self._documents.create_once(ref.manifest_key, VOID) == VOID
        # A version without any commit was put there by hand.
        return await self._documents.is_void(manifest.recipe.clone_id)

    async def _clear_pointer(self, student_id: str) -> bool:
        """Drops what the pointer says of versions that are gone, as after a deletion that was cut off.

        Returns:
            Whether there was any such thing.
        """
        keys = self._documents.keys_of(student_id)

        async def clear(pointer: Pointer) -> Pointer:
            refs = [self._documents.ref(student_id, version) for version in pointer.held]
            gone = {ref.version for ref in refs if await self._documents.is_gone(ref)}
            # A version that is being retired has lost its manifest before the rest.
            present = set(versions_in(keys, await self._blobs.keys(keys.prefix))) if pointer.retiring else set()
            return replace(
                pointer,
                active=None if pointer.active is None or pointer.active.ref.version in gone else pointer.active,
                pinned=pointer.pinned - gone,
                retiring=pointer.retiring & present,
            )

        try:
            move = await self._documents.move_pointer(student_id, clear)
        except AdapterCorrupt:
            # It stays, for a person to look at.
            _log.warning("sweep_skipped_corrupt_pointer", tenant=self._documents.keys.tenant)
            return False
        return move.after != move.before

    async def _void_without_weights(self, ref: AdapterRef, clone_id: str) -> Swept:
        entries = [entry async for entry in self._blobs.entries(self._documents.keys.commit(clone_id))]
        # Weights come before their commit: if they are not there now, they are gone.
        if not self._are_old(entries) or await self._documents.has_weights(ref):
            return Swept()
        erased = await self._documents.revoke(clone_id)
        return Swept(voided=1, bytes=erased.bytes)

    async def _students(self) -> AsyncIterator[tuple[str, list[Entry]]]:
        """Each student with the entries of the student's folder; a listing is in order, so they come together."""
        student_id: str | None = None
        entries: list[Entry] = []
        async for entry in self._blobs.entries(self._documents.keys.prefix):
            owner = self._documents.keys.student_in(entry.key)
            if owner != student_id:
                if student_id is not None:
                    yield student_id, entries
                student_id, entries = owner, []
            entries.append(entry)
        if student_id is not None:
            yield student_id, entries

    def _are_old(self, entries: Iterable[Entry]) -> bool:
        return all(entry.age_seconds >= self._older_than_seconds for entry in entries)
