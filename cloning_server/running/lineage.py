"""Which version a clone trains on from, and which it has to beat.

The version that the request names comes first, then the student's active version, then the cohort's. Only the version
that the request names must exist and fit. Any other that does not fit, or was made on another Main Brain, is left out,
because a clone can always train a fresh adapter.

A cohort is the students of one grade, disability and learning style. Its adapter is an ordinary published version, made
by an ordinary clone, under an id that is reserved for the cohort (ADR 12).

Knows nothing of how training works.
"""

from dataclasses import replace

from cloning_server.clone import Clone
from cloning_server.training import PreviousVersion, Trainer
from mesh.adapters.manifest import Start
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound
from mesh.log import get_logger
from mesh.tutoring.profile import StudentProfile

# Stands for a part of the profile that is unknown.
_UNKNOWN = "none"

_log = get_logger(__name__)


class Lineage:
    """Finds the version that comes before a clone's.

    Args:
        adapters: Holds the versions.
        trainer: Its Main Brain is the one that versions have to belong to.
        cohort_prefix: How the ids of cohorts begin; empty if there are no cohorts.
    """

    def __init__(self, adapters: AdapterStore, *, trainer: Trainer, cohort_prefix: str = "") -> None:
        self._adapters = adapters
        self._trainer = trainer
        self._cohort_prefix = cohort_prefix

    async def find(self, clone: Clone, profile: StudentProfile) -> PreviousVersion | None:
        """Returns the version to train on from or to compare with; None if there is only the base model.

        Raises:
            AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound: The version that the request names can't be used.
            AdapterStoreUnavailable: The adapter store does not answer.
        """
        if clone.terms.base_version:
            base_version = await self._fetch(clone.student_id, clone.terms.base_version)
            return replace(base_version, warm=True)
        active_version = await self._fetch_active(clone, clone.student_id)
        return active_version or await self._find_cohort(clone, profile)

    async def _find_cohort(self, clone: Clone, profile: StudentProfile) -> PreviousVersion | None:
        prefix = self._cohort_prefix
        # A cohort's adapter learns from its own baseline alone, unless the request names a version to train on from.
        if not prefix or is_cohort(clone.student_id, prefix=prefix):
            return None
        cohort = await self._fetch_active(clone, cohort_of(profile, prefix=prefix))
        # Until now the base model answers this student, so the base model is what the clone has to beat.
        return replace(cohort, warm=True, to_beat=False) if cohort else None

    async def _fetch_active(self, clone: Clone, student_id: str) -> PreviousVersion | None:
        try:
            active = await self._adapters.resolve_active(student_id)
            if active is None:
                return None
            return await self._fetch(student_id, active.ref.version, sha256=active.sha256)
        except (AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound) as error:
            _log.warning("previous_version_left_out", clone_id=clone.clone_id, reason=error.reason)
            return None

    async def _fetch(self, student_id: str, version: int, *, sha256: str | None = None) -> PreviousVersion:
        ref = self._adapters.ref(student_id, version)
        # Not known while no trainer is ready; the trainer refuses what does not belong to it then.
        base_digest = self._trainer.facts.main_brain or None
        stored = await self._adapters.fetch(ref, sha256=sha256, base_digest=base_digest)
        recipe = stored.manifest.recipe
        return PreviousVersion(
            weights=stored.weights,
            scaling=recipe.scaling,
            identity=Start(student_id=student_id, version=version, sha256=stored.manifest.sha256),
            base_digest=recipe.base_digest,
            policy=recipe.policy,
        )


def cohort_of(profile: StudentProfile, *, prefix: str) -> str:
    """The id of a student's cohort, such as `cohort-5-adhd-visual`. The subject is not part of it."""
    parts = (profile.grade, profile.disability, profile.learning_style)
    return "-".join((prefix, *(str(part or _UNKNOWN) for part in parts)))


def is_cohort(student_id: str, *, prefix: str) -> bool:
    """Whether an id is reserved for a cohort."""
    return student_id.startswith(f"{prefix}-")
