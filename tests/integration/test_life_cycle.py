"""The life of a clone through the gateway, on the real stack: cancelled, overtaken, pinned, erased."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import cloning_service_pb2_grpc as pb_grpc

from testing.baseline import start_body
from testing.parts.servers import cloning_server
from testing.parts.stack import Stack


async def frames_of(cloning: httpx.AsyncClient, clone_id: str) -> AsyncIterator[dict[str, Any]]:
    """The messages of a watch, without signs of life."""
    async with cloning.stream("GET", f"/v1/clone/{clone_id}/watch") as response:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and not (frame := json.loads(line.removeprefix("data: ")))["heartbeat"]:
                yield frame


async def start(cloning: httpx.AsyncClient, student_id: str, **more: object) -> str:
    started = await cloning.post("/v1/clone/start", json=start_body(student_id, **more))
    assert started.status_code == httpx.codes.OK, started.text
    return str(started.json()["clone_id"])


async def until(cloning: httpx.AsyncClient, clone_id: str, status: str) -> dict[str, Any]:
    """Returns once the clone is there."""
    async for frame in frames_of(cloning, clone_id):
        if frame["status"] == status:
            return frame
    raise AssertionError(f"{clone_id} ended without being {status}")


async def test_a_training_is_cancelled_and_the_student_can_be_erased_and_come_again(
    cloning: httpx.AsyncClient,
) -> None:
    clone_id = await start(cloning, "leaver", priority="CLONE_PRIORITY_HIGH")
    behind = await start(cloning, "leaver", queue_behind=True)
    waits = (await cloning.get(f"/v1/clone/{behind}/status")).json()
    assert (waits["status"], waits["queue_position"], waits["estimated_time_seconds"] > 0) == ("queued", 1, True)
    await until(cloning, clone_id, "fine_tuning")

    cancelled = await cloning.post(f"/v1/clone/{clone_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (httpx.codes.OK, "cancelled")
    assert (await cloning.post(f"/v1/clone/{clone_id}/cancel")).json() == cancelled.json()
    # The slot is free: the one behind it trains.
    await until(cloning, behind, "fine_tuning")

    receipt = await cloning.delete("/v1/students/leaver")
    assert receipt.status_code == httpx.codes.OK, receipt.text
    assert receipt.json()["clones"] == {"clones": 2, "cancelled": 1, "request_ids": 0}
    assert receipt.json()["brain"]["reached"]
    for missing in (clone_id, behind):
        assert (await cloning.get(f"/v1/clone/{missing}/status")).status_code == httpx.codes.NOT_FOUND
    assert (await cloning.get("/v1/students/leaver/models")).json()["models"] == []
    again = (await cloning.delete("/v1/students/leaver")).json()
    assert again["clones"] == {"clones": 0, "cancelled": 0, "request_ids": 0}


@pytest.mark.slow
async def test_a_server_that_hangs_is_overtaken_by_another_and_makes_no_second_version(
    aivo: Stack, cloning: httpx.AsyncClient, tmp_path: Path
) -> None:
    clone_id = await start(cloning, "overtaken")
    await until(cloning, clone_id, "creating_adapter")
    aivo.cloning_server.part.pause()
    try:
        another = cloning_server(tmp_path / "another", env=aivo.cloning_env)
        async with another as server, grpc.aio.insecure_channel(server.address) as channel:
            stub: pb_grpc.CloningServiceAsyncStub = pb_grpc.CloningServiceStub(channel)
            watching = stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_id))
            async for change in watching:
                if change.status == "fine_tuning" and change.attempt == 2:
                    # The other one is at work; the first wakes up in the middle of it, its training as good as done.
                    aivo.cloning_server.part.resume()
                last = change
            attempts = (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).attempts
    finally:
        aivo.cloning_server.part.resume()
    assert (last.status, last.attempt) == ("completed", 2)
    assert [attempt.outcome for attempt in attempts] == ["lease_expired", "completed"]
    models = (await cloning.get("/v1/students/overtaken/models")).json()
    assert [model["version"] for model in models["models"]] == [models["active_version"]]


# Three trainings of the default base model, one after another.
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_versions_are_gated_pinned_and_rolled_back_through_the_gateway(cloning: httpx.AsyncClient) -> None:
    whole = start_body("returner")["baseline_data"]
    few = whole | {"responses": whole["responses"][:5]}
    for baseline in (few, whole):
        await until(cloning, await start(cloning, "returner", baseline_data=baseline), "completed")
    # The same again makes nothing that is better, and what is there stays.
    kept_out = await until(cloning, await start(cloning, "returner", baseline_data=whole), "failed")
    assert [detail["reason"] for detail in kept_out["error"]["details"]] == ["GATE_NOT_PASSED"]
    models = (await cloning.get("/v1/students/returner/models")).json()
    newer, older = [model["version"] for model in models["models"]]
    assert models["active_version"] == newer

    rolled_back = await cloning.post(f"/v1/students/returner/models/{older}/activate")
    assert (rolled_back.json()["active_version"], rolled_back.json()["previous_version"]) == (older, newer)
    pinned = await cloning.post(f"/v1/students/returner/models/{older}/pin")
    assert pinned.json() == {"student_id": "returner", "version": older}
    models = (await cloning.get("/v1/students/returner/models")).json()
    assert [(model["version"], model["active"], model["pinned"]) for model in models["models"]] == [
        (newer, False, False),
        (older, True, True),
    ]
    unpinned = await cloning.post(f"/v1/students/returner/models/{older}/unpin")
    assert unpinned.json() == {"student_id": "returner", "version": older}
    page = (await cloning.get("/v1/students/returner/models?page_size=1")).json()
    assert ([model["version"] for model in page["models"]], page["active_version"]) == ([newer], older)
    models = (await cloning.get(f"/v1/students/returner/models?page_token={page['next_page_token']}")).json()
    assert [(model["version"], model["pinned"]) for model in models["models"]] == [(older, False)]
    missing = await cloning.post("/v1/students/returner/models/99/activate")
    assert missing.status_code == httpx.codes.NOT_FOUND
