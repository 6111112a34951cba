"""What a browser asks before it lets a page call."""

import grpc
import httpx
import pytest

from testing.scripted.script import Script, failure
from tests.gateway.conftest import ORIGIN

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/generate/stream", "/health"])
async def test_an_allowed_origin_passes_the_preflight(brain_rest: httpx.AsyncClient, brain: Script, path: str) -> None:
    answer = await brain_rest.options(path, headers={"origin": ORIGIN, **PREFLIGHT})

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-student-id" in answer.headers["access-control-allow-headers"]
    assert "last-event-id" in answer.headers["access-control-allow-headers"]
    assert brain.calls == []


async def test_another_origin_does_not(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    answer = await brain_rest.options("/v1/generate", headers={"origin": "https://evil.example", **PREFLIGHT})

    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert brain.calls == []


async def test_a_page_may_read_replies_and_errors(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.failures.append(failure(grpc.StatusCode.NOT_FOUND, "STUDENT_MODEL_NOT_FOUND"))
    headers = {"origin": ORIGIN}

    answers = [
        await brain_rest.post("/v1/generate", json={"prompt": "Why?"}, headers=headers),
        await brain_rest.post("/v1/generate", json={"prompt": "Why?"}, headers=headers),
        await brain_rest.post("/v1/generate", content="{", headers=headers | {"content-type": "application/json"}),
    ]

    assert [answer.status_code for answer in answers] == [404, 200, 400]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {ORIGIN}
