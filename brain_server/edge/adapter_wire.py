"""Between AdapterService's messages and the domain, both ways."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from aivo.brain.v1 import adapter_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from brain_server.edge.wire import adapter_from
from brain_server.engine.contract import LoadedAdapter, Residency, Tier, WarmedAdapter
from mesh.adapters.ref import validate_student_id
from mesh.errors import InvalidField, Violation
from mesh.paging import clamp_page_size, position_in, token_after

_LIST_NAME = "adapters"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIERS: Mapping[Tier, pb.AdapterTier.ValueType] = {
    Tier.HOST: pb.ADAPTER_TIER_HOST,
    Tier.SLOT: pb.ADAPTER_TIER_SLOT,
}


def student_id_from(request: pb.WarmAdapterRequest | pb.EvictAdapterRequest) -> str:
    """Parses whose adapter is meant.

    Raises:
        InvalidField: The id is malformed.
    """
    return validate_student_id(request.student_id)


def version_from(request: pb.WarmAdapterRequest) -> int | None:
    """Parses which version is meant; None is the active one.

    Raises:
        InvalidField: It is 0.
    """
    if not request.HasField("version"):
        return None
    if request.version < 1:
        raise InvalidField([Violation("version", "must be 1 or more")])
    return request.version


def warmed_from(warmed: WarmedAdapter) -> pb.WarmAdapterResponse:
    """Tells of an adapter that was loaded."""
    return pb.WarmAdapterResponse(
        adapter=adapter_from(warmed.adapter),
        bytes=warmed.bytes,
        load_ms=round(warmed.load_ms, 2),
        probe_tokens=warmed.probe_tokens,
    )


def page_from(request: pb.ListAdaptersRequest, residencies: Sequence[Residency]) -> pb.ListAdaptersResponse:
    """Tells of a page of the adapters in memory, most recently used first.

    Raises:
        InvalidField: The page's size or token is malformed.
    """
    if request.page_size < 0:
        raise InvalidField([Violation("page_size", "must be 0 or more")])
    below = position_in(request.page_token, _LIST_NAME) if request.page_token else None
    by_position = {_position_of(residency): residency for residency in residencies}
    positions = sorted((place for place in by_position if below is None or place < below), reverse=True)
    size = clamp_page_size(request.page_size)
    return pb.ListAdaptersResponse(
        adapters=[_residency_from(by_position[position]) for position in positions[:size]],
        next_page_token=token_after(positions[size - 1], _LIST_NAME) if len(positions) > size else "",
    )


def evicted_from(adapters: Sequence[LoadedAdapter]) -> pb.EvictAdapterResponse:
    """Tells of the adapters that left."""
    return pb.EvictAdapterResponse(adapters=[adapter_from(one) for one in adapters])


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
