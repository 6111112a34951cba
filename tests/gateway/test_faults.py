"""Servers that fail, are away, or are not ready: what is tried again, what callers learn, and what is logged."""

import json
from pathlib import Path

import grpc
import httpx
import pytest

from gateway.settings import GatewaySettings
from gateway.template import render
from mesh.settings import InvalidSettings, load_settings
from testing.parts.envoy import envoy
from testing.parts.part import free_ports
from testing.scripted.brain_server import ScriptedBrain, serving_brain
from testing.scripted.script import BASE_MODEL, Script, failure, info

UNAVAILABLE = failure(grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_LOADED")
PROMPT = {"prompt": "Why is the sky blue?"}
JSON = {"content-type": "application/json"}
NOWHERE = "127.0.0.1:9"


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/generate/stream"])
async def test_unavailable_is_tried_again(brain_rest: httpx.AsyncClient, brain: Script, path: str) -> None:
    brain.failures.append(UNAVAILABLE)

    answer = await brain_rest.post(path, json=PROMPT)

    assert (answer.status_code, len(brain.calls)) == (200, 2)


async def test_unavailable_to_the_end_keeps_the_servers_reason(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.failures.extend([UNAVAILABLE] * 3)

    answer = await brain_rest.post("/v1/generate", json=PROMPT)

    assert answer.status_code == 503
    assert answer.json()["details"][0]["reason"] == "MODEL_NOT_LOADED"


async def test_a_stream_that_has_begun_is_not_sent_anew(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.late_error = UNAVAILABLE

    await brain_rest.post("/v1/generate/stream", json=PROMPT)

    assert len(brain.calls) == 1


async def test_a_server_that_is_away_is_told_as_such_and_found_when_it_returns(tmp_path: Path) -> None:
    brain = ScriptedBrain()
    (port,) = free_ports(1)
    async with (
        envoy(tmp_path, brain_address=f"127.0.0.1:{port}", cloning_address=NOWHERE) as edge,
        httpx.AsyncClient(base_url=edge.brain_url) as client,
    ):
        away = await client.post("/v1/generate", json=PROMPT)
        async with serving_brain(brain, port=port):
            back = await client.post("/v1/generate", json=PROMPT)
        away_again = await client.post("/v1/generate", json=PROMPT)

    assert [away.status_code, back.status_code, away_again.status_code] == [503, 200, 503]
    assert away.json() == {
        "code": 14,
        "message": "the server behind the gateway does not answer",
        "details": [info("SERVER_UNREACHABLE")],
    }


async def test_a_server_that_is_not_ready_still_says_why(tmp_path: Path) -> None:
    brain = ScriptedBrain()
    async with (
        serving_brain(brain, healthy=False) as port,
        envoy(tmp_path, brain_address=f"127.0.0.1:{port}", cloning_address=NOWHERE) as edge,
        edge.admin as admin,
        httpx.AsyncClient() as client,
    ):
        hosts = ""
        while "failed_active_hc" not in hosts:
            hosts = (await admin.get("/clusters")).text
        answer = await client.get(f"{edge.brain_url}/health")

    assert (answer.status_code, answer.json()["model_name"]) == (200, BASE_MODEL)


async def test_a_students_calls_meet_the_same_replica(tmp_path: Path) -> None:
    brains = ScriptedBrain(), ScriptedBrain()
    async with serving_brain(brains[0]) as first_port, serving_brain(brains[1]) as second_port:
        addresses = f"127.0.0.1:{first_port},127.0.0.1:{second_port}"
        async with (
            envoy(tmp_path, brain_address=addresses, cloning_address=NOWHERE) as edge,
            httpx.AsyncClient(base_url=edge.brain_url) as client,
        ):
            for number in range(40):
                student = {"x-student-id": f"student{number % 20}"}
                assert (await client.post("/v1/generate", json=PROMPT, headers=student)).status_code == 200

    students = [[call.metadata["x-student-id"] for call in brain.script.calls] for brain in brains]
    assert all(students), "both replicas serve"
    assert not set(students[0]) & set(students[1])


async def test_the_access_log_has_facts_and_no_words(tmp_path: Path) -> None:
    brain = ScriptedBrain()
    async with (
        serving_brain(brain) as port,
        envoy(tmp_path, brain_address=f"127.0.0.1:{port}", cloning_address=NOWHERE) as edge,
        httpx.AsyncClient(base_url=edge.brain_url) as client,
    ):
        await client.post("/v1/generate", json={"prompt": "hush-hush"})
        await client.post("/v1/generate", content='{"prompt": "hush-hush', headers=JSON)
        await client.get("/v1/nothing?words=hush-hush")
        answer = await client.post("/v1/generate?words=hush-hush", json={"prompt": "hush-hush"})

    log = (edge.folder / "log").read_text()
    assert "hush" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/generate", 200),
        ("/v1/generate", 400),
        ("/v1/nothing", 404),
        ("/v1/generate", 400),
    ]
    assert lines[0]["rpc"] == "/aivo.brain.v1.BrainService/Generate"
    assert lines[3]["request_id"] == answer.headers["x-request-id"]


def test_all_faults_of_the_settings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAIN_REST_PORT", "http")
    monkeypatch.setenv("GATEWAY_HOST", "127.0.0.1\n  evil: true")
    monkeypatch.setenv("CLONING_ADDRESS", "no-port")
    monkeypatch.setenv("CORS_ALLOW_ORIGINS", "https://school.example, school.example")

    with pytest.raises(InvalidSettings) as caught:
        load_settings(GatewaySettings)

    for name in ("BRAIN_REST_PORT", "GATEWAY_HOST", "CLONING_ADDRESS", "CORS_ALLOW_ORIGINS"):
        assert name in str(caught.value)


def test_ports_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVOY_METRICS_PORT", "8001")

    with pytest.raises(InvalidSettings, match="BRAIN_REST_PORT and ENVOY_METRICS_PORT"):
        load_settings(GatewaySettings)


def test_no_web_page_may_call_unless_told() -> None:
    policy = '"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy'
    rendered = render(GatewaySettings())

    assert policy in rendered
    assert "allow_origin_string_match: []" in rendered
