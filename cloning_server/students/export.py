"""All that is held of a student, for families who ask."""

from dataclasses import dataclass
from datetime import UTC, datetime

from cloning_server.clone import Baseline, Clone
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.registry import Registry
from mesh.adapters.store import AdapterStore, VersionPage
from mesh.alerts.alert import Alert
from mesh.alerts.alert_store import AlertStore
from mesh.errors import BaselineUnreadable, CloneCorrupt, StudentNotFound

# What of one kind an export holds at most.
MAX_MODELS = 20
MAX_ALERTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedClone:
    """A clone, and its baseline.

    Attributes:
        baseline: None if the clone has ended, and if it can't be read.
        is_baseline_unreadable: Whether it can't be read.
    """

    clone: Clone
    baseline: Baseline | None = None
    is_baseline_unreadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsAndAlerts:
    """What is held of a student beside the clones.

    Attributes:
        versions: The newest.
        pinned: The numbers of the pinned versions.
        alerts: The latest.
        has_more_alerts: Whether there are others.
    """

    versions: VersionPage
    pinned: frozenset[int]
    alerts: tuple[Alert, ...]
    has_more_alerts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentExport:
    """A page of what is held of a student.

    Attributes:
        exported_time: When it was read.
        active_version: The version that answers; None if none does.
        clones: Newest first.
        rest: What comes with the first page; None on a later one.
        next_token: Of the next page; empty on the last.
    """

    student_id: str
    exported_time: datetime
    active_version: int | None
    clones: tuple[ExportedClone, ...]
    rest: ModelsAndAlerts | None
    next_token: str


class Exporter:
    """Reads what is held of students, and changes nothing.

    Args:
        registry: Holds their clones.
        adapters: Holds their versions.
        alerts: Holds the safety alerts about them.
    """

    def __init__(self, registry: Registry, *, adapters: AdapterStore, alerts: AlertStore) -> None:
        self._registry = registry
        self._adapters = adapters
        self._alerts = alerts

    async def export(self, student_id: str, *, size: int, token: str = "") -> StudentExport:
        """Returns a page of it.

        Args:
            student_id: The student.
            size: Most clones of the page.
            token: Of the page; empty for the first.

        Raises:
            StudentNotFound: Nothing is held.
            InvalidField: The token does not belong to this list.
            AdapterCorrupt: The pointer to the student's active version does not parse.
            AdapterStoreUnavailable, AlertStoreUnavailable, CloneStoreUnavailable, KeyServiceUnavailable: Call again.
        """
        now = datetime.now(UTC)
        page = await self._registry.listing.list_clones(student_id=student_id, size=size, token=token)
        active = await self._adapters.resolve_active(student_id)
        rest = None if token else await self._read_rest(student_id)
        is_empty = rest is not None and not (rest.versions.manifests or rest.alerts)
        if is_empty and not await self._registry.listing.has_clones(student_id):
            raise StudentNotFound(student_id=student_id)
        return StudentExport(
            student_id=student_id,
            exported_time=now,
            active_version=None if active is None else active.ref.version,
            clones=tuple([await self._with_baseline(clone) for clone in page.clones]),
            rest=rest,
            next_token=page.next_token,
        )

    async def _read_rest(self, student_id: str) -> ModelsAndAlerts:
        # One more than is returned, to know whether there are others.
        alerts = await self._alerts.list_latest(student_id=student_id, below=None, limit=MAX_ALERTS + 1)
        return ModelsAndAlerts(
            versions=await self._adapters.list_page(student_id, size=MAX_MODELS),
            pinned=await self._adapters.list_pinned(student_id),
            alerts=tuple(alerts[:MAX_ALERTS]),
            has_more_alerts=len(alerts) > MAX_ALERTS,
        )

    async def _with_baseline(self, clone: Clone) -> ExportedClone:
        if clone.state.is_final:
            return ExportedClone(clone=clone)
        try:
            baseline = await self._registry.leases.read_baseline(clone.clone_id)
        except CloneOvertaken:
            return ExportedClone(clone=clone)
        except (BaselineUnreadable, CloneCorrupt):
            return ExportedClone(clone=clone, is_baseline_unreadable=True)
        return ExportedClone(clone=clone, baseline=baseline)
