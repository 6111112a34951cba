"""The brain's AdapterService through a real server."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from aivo.brain.v1 import adapter_service_pb2 as adapter_pb

from mesh.errors import InvalidField
from mesh.paging import token_after
from mesh.rpc.errors import error_of
from testing.scripted.engine import SHA256
from tests.brain_server.edge.conftest import Served


async def test_warming_names_the_adapter_and_what_it_took(served: Served) -> None:
    request = adapter_pb.WarmAdapterRequest(student_id="ada", version=3)
    warmed = await served.adapters.WarmAdapter(request, timeout=30)
    assert (warmed.adapter.student_id, warmed.adapter.version, warmed.adapter.sha256) == ("ada", 3, SHA256)
    assert (warmed.bytes, warmed.load_ms, warmed.probe_tokens) == (1_800_000, 5.0, 4)


async def test_the_adapters_in_memory_are_listed(served: Served) -> None:
    listed = await served.adapters.ListAdapters(adapter_pb.ListAdaptersRequest(), timeout=30)
    (residency,) = listed.adapters
    assert residency.adapter.student_id == "student123"
    assert (residency.tier, residency.leases) == (adapter_pb.ADAPTER_TIER_SLOT, 1)
    assert residency.last_use_time.ToJsonString() == "2025-01-15T10:30:00Z"


async def test_the_adapters_in_memory_are_listed_page_by_page(served: Served) -> None:
    hour = datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    served.engine.residents = [
        ("ada", 1, hour),
        ("bo", 2, hour + timedelta(hours=2)),
        ("cy", 3, hour + timedelta(hours=1)),
    ]
    first = await served.adapters.ListAdapters(adapter_pb.ListAdaptersRequest(page_size=2), timeout=30)
    assert [residency.adapter.student_id for residency in first.adapters] == ["bo", "cy"]
    request = adapter_pb.ListAdaptersRequest(page_token=first.next_page_token)
    rest = await served.adapters.ListAdapters(request, timeout=30)
    assert [residency.adapter.student_id for residency in rest.adapters] == ["ada"]
    assert rest.next_page_token == ""


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (adapter_pb.ListAdaptersRequest(page_size=-1), "page_size"),
        (adapter_pb.ListAdaptersRequest(page_token="junk"), "page_token"),
        (adapter_pb.ListAdaptersRequest(page_token=token_after("7/ada/2", "adapters")), "page_token"),
    ],
)
async def test_a_page_of_adapters_that_cannot_be_is_refused(
    served: Served, request_: adapter_pb.ListAdaptersRequest, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.adapters.ListAdapters(request_, timeout=30)
    refused = error_of(caught.value)
    assert isinstance(refused, InvalidField)
    assert [violation.field for violation in refused.violations] == [field]


async def test_evicting_names_what_left(served: Served) -> None:
    evicted = await served.adapters.EvictAdapter(adapter_pb.EvictAdapterRequest(student_id="ada"), timeout=30)
    assert [adapter.student_id for adapter in evicted.adapters] == ["ada"]


@pytest.mark.parametrize("student_id", ["../x", "", "a/b"])
async def test_an_adapter_of_a_malformed_id_is_refused(served: Served, student_id: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.adapters.WarmAdapter(adapter_pb.WarmAdapterRequest(student_id=student_id), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
