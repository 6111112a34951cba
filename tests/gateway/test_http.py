"""HTTP as other programs speak it: version 1.0, HEAD, and connections that nobody uses."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from testing.parts.envoy import Edge, envoy
from testing.scripted.cloning_server import CLONE_ID
from testing.scripted.script import Script

NOWHERE = "127.0.0.1:9"


async def exchange(address: str, request: str) -> tuple[str, str]:
    """The head and the body of the answer to a request as it stands, until the gateway closes the connection."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.replace("\n", "\r\n").encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head, body


@pytest.mark.parametrize("host", ["Host: localhost\n", ""], ids=["nginx", "haproxy"])
async def test_http_1_0_is_answered_with_and_without_a_host(edge: Edge, brain: Script, host: str) -> None:
    head, body = await exchange(edge.brain_address, f"GET /health HTTP/1.0\n{host}\n")

    assert head.split("\r\n")[0].split()[1] == "200"
    assert '"status":"healthy"' in body
    assert len(brain.calls) == 1


async def test_http_1_0_lets_no_other_host_in(edge: Edge, brain: Script) -> None:
    head, _ = await exchange(edge.brain_address, "GET /health HTTP/1.0\nHost: evil.example\n\n")

    assert head.split("\r\n")[0].split()[1] == "403"
    assert brain.calls == []


async def test_a_stream_is_read_by_http_1_0_to_its_end(edge: Edge, cloning: Script) -> None:
    request = f"GET /v1/clone/{CLONE_ID}/watch?after_sequence=6 HTTP/1.0\nHost: localhost\n\n"
    head, body = await exchange(edge.cloning_address, request)

    assert "transfer-encoding" not in head
    assert [line for line in body.split("\n") if line.startswith("id:")] == ["id: 7", "id: 8"]


@pytest.mark.parametrize("path", ["/health", "/v1/clones", f"/v1/clone/{CLONE_ID}/status"])
async def test_head_is_answered_as_get_without_the_body(
    cloning_rest: httpx.AsyncClient, cloning: Script, path: str
) -> None:
    get, head = await cloning_rest.get(path), await cloning_rest.head(path)

    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "cache-control"):
        assert head.headers[name] == get.headers[name]
    assert [call.rpc for call in cloning.calls] == [cloning.calls[0].rpc] * 2


async def test_a_head_leaves_nothing_on_the_connection(edge: Edge, brain: Script) -> None:
    request = "HEAD /health HTTP/1.1\nHost: localhost\n\nGET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n"
    _, rest = await exchange(edge.brain_address, request)

    assert rest.startswith("HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/v1/generate", f"/v1/clone/{CLONE_ID}/watch", "/v1/nothing"])
async def test_a_head_of_what_no_get_ends_is_not_found(
    cloning_rest: httpx.AsyncClient, cloning: Script, path: str
) -> None:
    assert (await cloning_rest.head(path)).status_code == 404
    assert cloning.calls == []


async def test_a_connection_without_a_request_is_closed(tmp_path: Path) -> None:
    async with (
        envoy(tmp_path, brain_address=NOWHERE, cloning_address=NOWHERE, connection_idle_seconds="1") as edge,
        asyncio.timeout(20),
    ):
        for url in (edge.brain_url, edge.cloning_url, edge.metrics_url):
            port = urlsplit(url).port
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
