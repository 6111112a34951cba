"""Versions of objects in an S3 bucket with versioning: how a listing shows them, and which of them are past.

Knows no client; `mesh.adapters.s3` sends the requests.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mesh.adapters.blobs import RemovedObjects

if TYPE_CHECKING:
    # A package of types only, which is not installed outside development.
    from mypy_boto3_s3.type_defs import ListObjectVersionsOutputTypeDef


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectVersion:
    """One version of an object, or a deletion marker."""

    key: str
    version_id: str
    is_latest: bool
    is_marker: bool
    size_bytes: int
    written_time: datetime


def versions_in(page: "ListObjectVersionsOutputTypeDef") -> Iterator[ObjectVersion]:
    """Yields the versions on one page of a listing, then the markers."""
    for version in page.get("Versions", []):
        yield ObjectVersion(
            key=version["Key"],
            version_id=version["VersionId"],
            is_latest=version["IsLatest"],
            is_marker=False,
            size_bytes=version["Size"],
            written_time=version["LastModified"],
        )
    for marker in page.get("DeleteMarkers", []):
        yield ObjectVersion(
            key=marker["Key"],
            version_id=marker["VersionId"],
            is_latest=marker["IsLatest"],
            is_marker=True,
            size_bytes=0,
            written_time=marker["LastModified"],
        )


def past_versions(versions: Iterable[ObjectVersion]) -> list[ObjectVersion]:
    """Selects the versions and markers that readers no longer see.

    SeaweedFS lists a version that is being written before it becomes the latest. Such a version looks like a past one,
    so only versions that are older than their key's latest version count.
    """
    latest: dict[str, ObjectVersion] = {}
    candidates = []
    for version in versions:
        if version.is_latest:
            latest[version.key] = version
        if version.is_marker or not version.is_latest:
            candidates.append((version, version.key in latest))
    return [
        version
        for version, is_listed_after_latest in candidates
        if version.is_latest or _is_older(version, latest.get(version.key), is_listed_after=is_listed_after_latest)
    ]


def _is_older(version: ObjectVersion, latest: ObjectVersion | None, *, is_listed_after: bool) -> bool:
    if latest is None:
        return False
    if version.is_marker == latest.is_marker:
        # A key's versions are listed newest first. Times have a resolution of one second, the order is exact.
        return is_listed_after
    # Versions and markers are in separate lists.
    return version.written_time <= latest.written_time


def count_removed(versions: Sequence[ObjectVersion]) -> RemovedObjects:
    """Counts the versions and their bytes."""
    return RemovedObjects(objects=len(versions), bytes=sum(version.size_bytes for version in versions))
