"""Server-sent events: each message when it is sent, to the end or to the caller's leaving."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx

from testing.scripted.brain_server import PIECES
from testing.scripted.cloning_server import CLONE_ID, STATES
from testing.scripted.script import Script, failure


async def frames(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The messages of an event stream, as they come; fails on what is not `data: {json}` and an empty line."""
    lines = answer.aiter_lines()
    async for line in lines:
        assert line.startswith("data: {")
        assert await anext(lines) == ""
        yield json.loads(line.removeprefix("data: "))


async def test_each_piece_arrives_before_the_next_is_made(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.hold.clear()

    async with brain_rest.stream("POST", "/v1/generate/stream", json={"prompt": "Why?"}) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
        arriving = frames(answer)
        assert await anext(arriving) == {"sequence": 1, "text": PIECES[0]}
        # Only now may the server go on.
        brain.hold.set()
        rest = [frame async for frame in arriving]

    assert [frame["sequence"] for frame in rest] == [2, 3, 4]
    assert rest[-1]["finished"]["response"] == "".join(PIECES)


async def test_leaving_the_stream_cancels_the_call(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.hold.clear()

    async with brain_rest.stream("POST", "/v1/generate/stream", json={"prompt": "Why?"}) as answer:
        await anext(frames(answer))

    await brain.cancelled.wait()


async def test_an_error_after_the_first_message_is_the_last_frame(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.late_error = failure(grpc.StatusCode.INTERNAL, "INTERNAL", call_id="5f0c")

    async with brain_rest.stream("POST", "/v1/generate/stream", json={"prompt": "Why?"}) as answer:
        first, last = [frame async for frame in frames(answer)]

    assert (answer.status_code, first["text"]) == (200, PIECES[0])
    error = last["finished"]["error"]
    assert (error["code"], error["details"][0]["metadata"]) == (13, {"call_id": "5f0c"})


async def test_watching_resumes_after_a_sequence(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    # As EventSource asks: GET, and only this accept header.
    headers = {"accept": "text/event-stream"}
    path = f"/v1/clone/{CLONE_ID}/watch?after_sequence=2"

    async with cloning_rest.stream("GET", path, headers=headers) as answer:
        states = [frame["status"] async for frame in frames(answer)]

    assert answer.headers["content-type"] == "text/event-stream"
    assert states == list(STATES[2:])


async def test_watching_an_unknown_clone_is_not_found(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    cloning.failures.append(failure(grpc.StatusCode.NOT_FOUND, "CLONE_NOT_FOUND", clone_id="nope"))

    answer = await cloning_rest.get("/v1/clone/nope/watch")

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json()["details"][0]["reason"] == "CLONE_NOT_FOUND"
