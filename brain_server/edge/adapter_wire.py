"""Between AdapterService's messages and the domain, both ways."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from aivo.brain.v1 import adapter_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from brain_server.edge.wire import adapter_from
from brain_server.engine.contract import LoadedAdapter, Residency, Tier, WarmedAdapter
from mesh.paging import clamp_page_size, position_in, token_after

_LIST_NAME = "adapters"
# What `_position_of` returns.
_POSITION = re.compile(r"[0-9]{20}/[^/]+/[0-9]{10}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIERS: Mapping[Tier, pb.AdapterTier.ValueType] = {
    Tier.HOST: pb.ADAPTER_TIER_HOST,
    Tier.SLOT: pb.ADAPTER_TIER_SLOT,
}


def version_from(request: pb.WarmAdapterRequest) -> int | None:
    """Converts which version is meant; None is the active one."""
    return request.version if request.HasField("version") else None


def warmed_from(warmed: WarmedAdapter) -> pb.WarmAdapterResponse:
    """Converts an adapter that was loaded."""
    return pb.WarmAdapterResponse(
        adapter=adapter_from(warmed.adapter),
        bytes=warmed.bytes,
        load_ms=round(warmed.load_ms, 2),
        probe_tokens=warmed.probe_tokens,
    )


def page_from(request: pb.ListAdaptersRequest, residencies: Sequence[Residency]) -> pb.ListAdaptersResponse:
    """Converts a page of the adapters in memory, most recently used first.

    Raises:
        InvalidField: The page token is not one of this list.
    """
    below = position_in(request.page_token, _LIST_NAME, is_position=_is_position) if request.page_token else None
    by_position = {_position_of(residency): residency for residency in residencies}
    positions = sorted((place for place in by_position if below is None or place < below), reverse=True)
    size = clamp_page_size(request.page_size)
    return pb.ListAdaptersResponse(
        adapters=[_residency_from(by_position[position]) for position in positions[:size]],
        next_page_token=token_after(positions[size - 1], _LIST_NAME) if len(positions) > size else "",
    )


def evicted_from(adapters: Sequence[LoadedAdapter]) -> pb.EvictAdapterResponse:
    """Converts the adapters that left."""
    return pb.EvictAdapterResponse(adapters=[adapter_from(adapter) for adapter in adapters])


def _is_position(position: str) -> bool:
    return _POSITION.fullmatch(position) is not None


def _position_of(residency: Residency) -> str:
    """Grows with the time of the last use; no two adapters have the same."""
    microseconds = (residency.last_used - _EPOCH) // timedelta(microseconds=1)
    ref = residency.adapter.ref
    return f"{microseconds:020d}/{ref.student_id}/{ref.version:010d}"


def _residency_from(residency: Residency) -> pb.AdapterResidency:
    last_use = Timestamp()
    last_use.FromDatetime(residency.last_used)
    return pb.AdapterResidency(
        adapter=adapter_from(residency.adapter),
        tier=_TIERS[residency.tier],
        bytes=residency.bytes,
        leases=residency.leases,
        last_use_time=last_use,
    )
