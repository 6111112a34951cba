"""Which requests may enter: the matrix of Host, Origin and content type, as callers and as web pages send them."""

import itertools
import stat
from pathlib import Path

import grpc
import httpx
import pytest
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub

from testing.parts.envoy import Edge, envoy
from testing.scripted.brain_server import ScriptedBrain, serving_brain
from testing.scripted.script import Script, info
from tests.gateway.conftest import ORIGIN

NOWHERE = "127.0.0.1:9"
PAGE = "https://evil.example"

# What may be sent, and whether it is one that may enter; None is a header that is absent.
HOSTS = {
    "127.0.0.1": True,
    "LocalHost:8001": True,
    "[::1]:8001": True,
    "evil.example": False,
    "evil.example:8001": False,
    "localhost.evil.example": False,
    "127.0.0.1.evil.example": False,
    "localhost:evil.example": False,
}
ORIGINS = {
    None: True,
    ORIGIN: True,
    PAGE: False,
    f"{ORIGIN}.evil.example": False,
    "null": False,
    "http://localhost": False,
    "http://127.0.0.1:3000": False,
}
TYPES = {
    "application/json": True,
    "Application/JSON; charset=utf-8": True,
    None: False,
    "text/plain": False,
    "text/plain; application/json": False,
    "text/plain, application/json": False,
    "application/x-www-form-urlencoded": False,
    "multipart/form-data; boundary=x": False,
    "application/jsonp": False,
    "application/grpc-web": False,
}
REFUSALS = {
    "HOST_NOT_ALLOWED": (403, 7, "the Host header is not one of ALLOWED_HOSTS"),
    "ORIGIN_NOT_ALLOWED": (403, 7, "the Origin header is not one of CORS_ALLOW_ORIGINS"),
    "UNSUPPORTED_MEDIA_TYPE": (415, 3, "the body's content-type must be application/json, or gRPC's"),
}


def expected_reason(host: str, origin: str | None, content_type: str | None) -> str | None:
    """Why a request with a body is refused; None for one that may enter."""
    if not HOSTS[host]:
        return "HOST_NOT_ALLOWED"
    if not ORIGINS[origin]:
        return "ORIGIN_NOT_ALLOWED"
    return None if TYPES[content_type] else "UNSUPPORTED_MEDIA_TYPE"


def headers(**values: str | None) -> dict[str, str]:
    """Headers of those that are not None."""
    return {name.replace("_", "-"): value for name, value in values.items() if value is not None}


async def test_of_all_hosts_origins_and_types_only_the_allowed_reach_a_server(
    brain_rest: httpx.AsyncClient, brain: Script
) -> None:
    entered = 0
    for host, origin, content_type in itertools.product(HOSTS, ORIGINS, TYPES):
        sent = headers(host=host, origin=origin, content_type=content_type)
        answer = await brain_rest.post("/v1/generate", content=b'{"prompt": "hush-hush"}', headers=sent)

        reason = expected_reason(host, origin, content_type)
        if reason is None:
            entered += 1
            assert answer.status_code == 200, sent
        else:
            http, code, message = REFUSALS[reason]
            assert answer.status_code == http, sent
            assert answer.json() == {"code": code, "message": message, "details": [info(reason)]}, sent
        assert len(brain.calls) == entered, sent
    assert entered == 12


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/students/student123"),
        ("POST", "/v1/clone/clone_abc123xyz/cancel"),
        ("POST", "/v1/students/student123/models/1/activate"),
        ("GET", "/v1/clones"),
        ("GET", "/v1/clone/clone_abc123xyz/watch"),
    ],
)
async def test_without_a_body_the_type_is_free_and_a_page_has_no_way_in(
    cloning_rest: httpx.AsyncClient, cloning: Script, method: str, path: str
) -> None:
    from_page = await cloning_rest.request(method, path, headers={"origin": PAGE})
    rebound = await cloning_rest.request(method, path, headers={"host": "evil.example"})
    assert [answer.status_code for answer in (from_page, rebound)] == [403, 403]
    assert cloning.calls == []

    own = await cloning_rest.request(method, path)
    of_the_frontend = await cloning_rest.request(method, path, headers={"origin": ORIGIN})

    assert [answer.status_code for answer in (own, of_the_frontend)] == [200, 200]
    assert len(cloning.calls) == 2


async def test_a_page_that_may_call_can_read_why_its_body_is_refused(brain_rest: httpx.AsyncClient) -> None:
    answer = await brain_rest.post("/v1/generate", content="{}", headers={"origin": ORIGIN})

    assert answer.status_code == 415
    assert answer.headers["access-control-allow-origin"] == ORIGIN


async def test_a_page_of_the_gateways_own_port_is_not_foreign(
    edge: Edge, brain_rest: httpx.AsyncClient, brain: Script
) -> None:
    own = await brain_rest.post("/v1/generate", json={"prompt": "Why?"}, headers={"origin": edge.brain_url})
    neighbours = await brain_rest.post("/v1/generate", json={"prompt": "Why?"}, headers={"origin": edge.cloning_url})

    assert [own.status_code, neighbours.status_code] == [200, 403]
    assert len(brain.calls) == 1


async def test_a_grpc_caller_of_another_host_is_refused(edge: Edge, brain: Script) -> None:
    options = [("grpc.default_authority", "evil.example")]
    async with grpc.aio.insecure_channel(edge.brain_address, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await BrainServiceStub(channel).Generate(brain_pb.GenerateRequest(prompt="Why?"))

    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "the Host header is not one of ALLOWED_HOSTS"
    assert brain.calls == []


async def test_the_settings_say_which_hosts_and_that_any_origin_may(tmp_path: Path) -> None:
    async with (
        serving_brain(ScriptedBrain()) as port,
        envoy(
            tmp_path,
            brain_address=f"127.0.0.1:{port}",
            cloning_address=NOWHERE,
            cors_allow_origins="*",
            allowed_hosts="AIVO.school.example, aivo",
        ) as edge,
        httpx.AsyncClient(base_url=edge.brain_url) as client,
    ):
        named, short, local = [
            await client.get("/health", headers={"host": host, "origin": PAGE})
            for host in ("aivo.school.example", "aivo:8001", "localhost")
        ]

    assert [answer.status_code for answer in (named, short, local)] == [200, 200, 403]


async def test_envoys_figures_can_be_read_and_nothing_be_done(edge: Edge) -> None:
    async with httpx.AsyncClient(base_url=edge.metrics_url) as client:
        figures = await client.get("/stats/prometheus")
        rebound = await client.get("/stats/prometheus", headers={"host": "evil.example"})
        from_page = await client.get("/stats/prometheus", headers={"origin": PAGE})
        others = [
            await client.request(method, path)
            for method, path in (
                ("POST", "/quitquitquit"),
                ("POST", "/stats/prometheus"),
                ("POST", "/ready"),
                ("GET", "/config_dump"),
                ("GET", "/ready/../clusters"),
                ("GET", "/"),
            )
        ]

    assert "envoy_http_downstream_rq" in figures.text
    assert [rebound.status_code, from_page.status_code] == [403, 403]
    assert {answer.status_code for answer in others} == {404}


async def test_envoys_own_interface_is_a_socket_of_this_user(edge: Edge) -> None:
    async with edge.admin as admin:
        answer = await admin.get("/server_info")

    assert answer.json()["state"] == "LIVE"
    assert stat.S_IMODE((edge.folder / "admin.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((edge.folder / "envoy.yaml").stat().st_mode) == 0o600
