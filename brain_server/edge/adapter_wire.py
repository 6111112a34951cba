"""Between AdapterService's messages and the domain, both ways."""

from collections.abc import Mapping, Sequence

from aivo.brain.v1 import adapter_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from brain_server.edge.wire import adapter_from
from brain_server.engine.contract import LoadedAdapter, Residency, Tier, Warmed
from mesh.adapters.ref import validate_student_id
from mesh.errors import InvalidField, Violation

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


def warmed_from(warmed: Warmed) -> pb.WarmAdapterResponse:
    """Tells of an adapter that was loaded."""
    return pb.WarmAdapterResponse(
        adapter=adapter_from(warmed.adapter),
        bytes=warmed.bytes,
        load_ms=warmed.load_ms,
        probe_tokens=warmed.probe_tokens,
    )


def residencies_from(residencies: Sequence[Residency]) -> pb.ListAdaptersResponse:
    """Tells of the adapters in memory."""
    return pb.ListAdaptersResponse(adapters=[_residency_from(one) for one in residencies])


def evicted_from(adapters: Sequence[LoadedAdapter]) -> pb.EvictAdapterResponse:
    """Tells of the adapters that left."""
    return pb.EvictAdapterResponse(adapters=[adapter_from(one) for one in adapters])


def _residency_from(residency: Residency) -> pb.AdapterResidency:
    last_used = Timestamp()
    last_used.FromDatetime(residency.last_used)
    return pb.AdapterResidency(
        adapter=adapter_from(residency.adapter),
        tier=_TIERS[residency.tier],
        bytes=residency.bytes,
        leases=residency.leases,
        last_used_time=last_used,
    )
