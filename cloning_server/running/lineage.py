"""Which version a clone goes on from, and which it has to beat.

The version that a request names comes first, then the one that answers the student now, then the cohort's. Only what
the request names must be there and fit: whatever else does not is left out, as a fresh adapter can always be made.

Knows nothing of how training goes.
"""

from dataclasses import replace

from cloning_server.clone import Clone
from cloning_server.running.cohorts import cohort_of, is_cohort
from cloning_server.training import PreviousVersion, Trainer
from mesh.adapters.manifest import Start
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound
from mesh.log import get_logger
from mesh.tutoring.profile import StudentProfile

_log = get_logger(__name__)


class Ancestry:
    """Finds what was there before a clone.

    Args:
        adapters: Where the versions are.
        trainer: Whose base model they have to fit.
        cohort_prefix: How the ids of cohorts begin; empty if none are configured.
    """

    def __init__(self, adapters: AdapterStore, *, trainer: Trainer, cohort_prefix: str = "") -> None:
        self._adapters = adapters
        self._trainer = trainer
        self._cohort_prefix = cohort_prefix

    async def find(self, clone: Clone, profile: StudentProfile) -> PreviousVersion | None:
        """What to train on from or to compare with; None if there is only the base model.

        Raises:
            AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound: The version that the request names can't be used.
            AdapterStoreUnavailable: The store does not answer.
        """
        if clone.terms.base_version:
            asked_for = await self._fetch(clone.student_id, clone.terms.base_version)
            return replace(asked_for, warm=True)
        own = await self._fetch_active(clone, clone.student_id)
        return own or await self._find_cohort(clone, profile)

    async def _find_cohort(self, clone: Clone, profile: StudentProfile) -> PreviousVersion | None:
        prefix = self._cohort_prefix
        # A cohort is made from the answers that were given for it, not from an earlier cohort unless that is asked for.
        if not prefix or is_cohort(clone.student_id, prefix=prefix):
            return None
        found = await self._fetch_active(clone, cohort_of(profile, prefix=prefix))
        # The base model answers this student until now, so that is what there is to beat.
        return replace(found, warm=True, to_beat=False) if found else None

    async def _fetch_active(self, clone: Clone, student_id: str) -> PreviousVersion | None:
        try:
            active = await self._adapters.resolve_active(student_id)
            if active is None:
                return None
            return await self._fetch(student_id, active.ref.version, sha256=active.sha256)
        except (AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound) as error:
            _log.warning("no_previous_version", clone_id=clone.clone_id, reason=error.reason)
            return None

    async def _fetch(self, student_id: str, version: int, *, sha256: str | None = None) -> PreviousVersion:
        stored = await self._adapters.fetch(self._adapters.ref(student_id, version), sha256=sha256)
        recipe = stored.manifest.recipe
        facts = self._trainer.facts
        if facts.ready and recipe.base_model != facts.model:
            message = f"version {version} belongs to another base model; train on from a version of this one"
            raise AdapterIncompatible(message, student_id=student_id, version=version)
        return PreviousVersion(
            weights=stored.weights,
            scaling=recipe.scaling,
            identity=Start(student_id=student_id, version=version, sha256=stored.manifest.sha256),
            base_digest=recipe.base_digest,
        )
