"""The sweeper: removes what dead workers left behind in a tenant, and finishes what they had decided.

Whatever was written lately may belong to a worker under way and is left alone. That is a courtesy: a worker that pauses
for longer loses its clone's version, but never publishes half of one. For the manifest's key decides between the two:
either the sweeper takes it, with a void document, before it removes the weights, or the worker does and they stay.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace

from mesh.adapters.blobs import Entry
from mesh.adapters.documents import VOID, Documents, versions_in
from mesh.adapters.pointer import Pointer
from mesh.adapters.publication import Publication
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt, ModelVersionNotFound


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
        self._blobs = documents.blobs
        self._publication = publication

    async def sweep(self, *, older_than_seconds: float) -> Swept:
        """See `AdapterStore.sweep`."""
        # Which clones say that a version is theirs: one, unless a number was freed and taken under a worker that died.
        clones: defaultdict[AdapterRef, list[str]] = defaultdict(list)
        async for manifest in self._documents.commits():
            clones[manifest.ref].append(manifest.recipe.clone_id)
        swept = Swept()
        async for student_id, entries in self._students():
            here = {entry.key for entry in entries}
            refs = [self._documents.ref(student_id, version) for version in self._versions_in(student_id, here)]
            for ref in refs:
                named = clones.pop(ref, []) if ref.weights_key in here else []
                if not (len(named) == 1 and ref.manifest_key in here):
                    swept += await self._tend(ref, named, older_than_seconds=older_than_seconds)
            if refs:
                swept += Swept(pointers=int(await self._clear_pointer(student_id)))
            elif _all_old(entries, older_than_seconds):
                swept += Swept(pointers=int(await self._documents.drop_stray_pointer(student_id)))
        for ref, named in clones.items():
            for clone_id in named:
                swept += await self._void(ref, clone_id, older_than_seconds=older_than_seconds)
        # What void commits were before, where whoever made them void was cut off.
        await self._blobs.forget(self._documents.keys.commits)
        return swept

    async def _tend(self, ref: AdapterRef, clone_ids: list[str], *, older_than_seconds: float) -> Swept:
        """Finishes or removes a version of which something is missing, or that not exactly one commit names."""
        # Looked at again, as the number may have been freed and taken since.
        entries = [entry async for entry in self._blobs.entries(f"{ref}/")]
        here = {entry.key for entry in entries}
        if not entries or not _all_old(entries, older_than_seconds):
            return Swept()
        if clone_ids:
            return await self._finish(clone_ids, counts=ref.manifest_key not in here)
        if not await self._is_condemned(ref, here):
            return Swept()
        # The manifest last: as long as its key is taken, nobody can publish what goes here.
        entries.sort(key=lambda entry: entry.key == ref.manifest_key)
        removed = await self._documents.remove(entries)
        await self._documents.take_back(ref.manifest_key, VOID)
        return Swept(removed=1, bytes=removed.bytes)

    async def _finish(self, clone_ids: list[str], *, counts: bool) -> Swept:
        swept = Swept()
        for clone_id in clone_ids:
            is_finished = await self._publication.finish(clone_id) is not None
            swept += Swept(finished=int(is_finished and counts), voided=int(not is_finished))
        return swept

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
        return await self._documents.is_void(manifest.recipe.clone_id)

    async def _clear_pointer(self, student_id: str) -> bool:
        """Forgets active and pinned versions that are gone, as after a deletion that was cut off; tells whether any."""
        cleared = False

        async def clear(pointer: Pointer) -> Pointer:
            nonlocal cleared
            refs = [self._documents.ref(student_id, version) for version in pointer.held]
            gone = {ref.version for ref in refs if await self._documents.is_gone(ref)}
            cleared = bool(gone)
            active = None if pointer.active is None or pointer.active.ref.version in gone else pointer.active
            return replace(pointer, active=active, pinned=pointer.pinned - gone)

        # One that does not parse is for a person to look at.
        with suppress(AdapterCorrupt):
            await self._documents.change_pointer(student_id, clear)
        return cleared

    async def _void(self, ref: AdapterRef, clone_id: str, *, older_than_seconds: float) -> Swept:
        entries = [entry async for entry in self._blobs.entries(self._documents.keys.commit(clone_id))]
        # Weights come before their commit: if they are not there now, they are gone.
        if not _all_old(entries, older_than_seconds) or await self._documents.has_weights(ref):
            return Swept()
        erased = await self._documents.revoke(clone_id)
        return Swept(voided=1, bytes=erased.bytes)

    async def _students(self) -> AsyncIterator[tuple[str, list[Entry]]]:
        """Each student and all that is there of them; a listing is in order, so it comes together."""
        student_id: str | None = None
        entries: list[Entry] = []
        async for entry in self._blobs.entries(self._documents.keys.prefix):
            found = self._documents.keys.student_in(entry.key)
            if found != student_id:
                if student_id is not None:
                    yield student_id, entries
                student_id, entries = found, []
            entries.append(entry)
        if student_id is not None:
            yield student_id, entries

    def _versions_in(self, student_id: str, found: AbstractSet[str]) -> list[int]:
        return versions_in(self._documents.keys_of(student_id), found)


def _all_old(entries: Iterable[Entry], older_than_seconds: float) -> bool:
    return all(entry.age_seconds >= older_than_seconds for entry in entries)
