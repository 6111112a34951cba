"""What an erasure leaves, where, and until when: a part of the receipt."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class ResiduePlace(StrEnum):
    """Where data of an erased student may be left. The contract says which data, and when it goes."""

    BRAINS = "brains"
    CLONE_STORE_FILE = "clone_store_file"
    ADAPTER_STORE_DISKS = "adapter_store_disks"
    REPLY_CACHE = "reply_cache"
    COHORTS = "cohorts"
    LOGS_AND_BACKUPS = "logs_and_backups"
    TRAINERS = "trainers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Residue:
    """Something that may be left; `until` is None where nobody here knows."""

    place: ResiduePlace
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidueTerms:
    """How long what is left stays.

    Attributes:
        file_rewrite_seconds: Between two rewrites of Valkey's append-only file.
        reply_cache_seconds: How long a distilled reply is kept.
        trainer_seconds: How long a trainer may take to end a training that was cancelled.
        has_cohorts: Whether cohorts are configured, whose adapters may have learned from the student.
    """

    file_rewrite_seconds: float
    reply_cache_seconds: float
    trainer_seconds: float
    has_cohorts: bool

    def residues(
        self, *, erased_time: datetime, forgotten_time: datetime | None, is_file_rewritten: bool
    ) -> tuple[Residue, ...]:
        """Returns what may be left after an erasure, also after one that found nothing: an earlier call removed it.

        Args:
            erased_time: When it ended.
            forgotten_time: When the last brain has forgotten the student; None if that is not known.
            is_file_rewritten: Whether Valkey rewrites its file when a server asks.
        """
        # One interval until the next rewrite begins, and one for the rewrite.
        rewrite_time = erased_time + 2 * timedelta(seconds=self.file_rewrite_seconds)
        residues = [
            Residue(place=ResiduePlace.BRAINS, until=forgotten_time),
            Residue(place=ResiduePlace.CLONE_STORE_FILE, until=rewrite_time if is_file_rewritten else None),
            Residue(place=ResiduePlace.ADAPTER_STORE_DISKS),
            Residue(place=ResiduePlace.REPLY_CACHE, until=erased_time + timedelta(seconds=self.reply_cache_seconds)),
            Residue(place=ResiduePlace.TRAINERS, until=erased_time + timedelta(seconds=self.trainer_seconds)),
            Residue(place=ResiduePlace.LOGS_AND_BACKUPS),
        ]
        if self.has_cohorts:
            residues.append(Residue(place=ResiduePlace.COHORTS))
        return tuple(residues)
