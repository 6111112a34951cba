"""Server-sent events: each message when it is sent, to the end or to the caller's leaving."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb

from testing.scripted.brain_server import PIECES
from testing.scripted.cloning_server import CLONE_ID, STATES
from testing.scripted.script import Script, failure, info

EVENT_STREAM = "text/event-stream; charset=utf-8"


async def frames(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The messages of an event stream, as they come; fails on what is not `data: {json}` and an empty line.

    An event may have an id before that, which is then the sequence of its message.
    """
    lines = answer.aiter_lines()
    async for line in lines:
        event_id = line.removeprefix("id: ") if line.startswith("id: ") else None
        data = line if event_id is None else await anext(lines)
        assert data.startswith("data: {")
        assert await anext(lines) == ""
        message = json.loads(data.removeprefix("data: "))
        assert event_id in {None, str(message["sequence"])}
        yield message


async def events(client: httpx.AsyncClient, path: str, *, last_event_id: str | None = None) -> list[tuple[str, str]]:
    """The id and the status of each event of a watch, as a page's `EventSource` gets them."""
    headers = {"accept": "text/event-stream"} | ({} if last_event_id is None else {"last-event-id": last_event_id})
    text = (await client.get(path, headers=headers)).text
    lines = [event.split("\n") for event in text.removesuffix("\n\n").split("\n\n")]
    return [(event[0].removeprefix("id: "), json.loads(event[1].removeprefix("data: "))["status"]) for event in lines]


async def test_each_piece_arrives_before_the_next_is_made(brain_rest: httpx.AsyncClient, brain: Script) -> None:
    brain.hold.clear()

    async with brain_rest.stream("POST", "/v1/generate/stream", json={"prompt": "Why?"}) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, EVENT_STREAM)
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

    assert answer.headers["content-type"] == EVENT_STREAM
    assert states == list(STATES[2:])


async def test_watching_an_unknown_clone_is_not_found(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    cloning.failures.append(failure(grpc.StatusCode.NOT_FOUND, "CLONE_NOT_FOUND", clone_id="nope"))

    answer = await cloning_rest.get("/v1/clone/nope/watch")

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json()["details"][0]["reason"] == "CLONE_NOT_FOUND"


async def test_each_change_has_an_id_and_a_watch_goes_on_after_the_last_one(
    cloning_rest: httpx.AsyncClient, cloning: Script
) -> None:
    path = f"/v1/clone/{CLONE_ID}/watch"
    changes = [(str(sequence), status) for sequence, status in enumerate(STATES, start=1)]

    assert await events(cloning_rest, path) == changes
    assert await events(cloning_rest, path, last_event_id="5") == changes[5:]
    # The page's URL is the same whenever it connects.
    assert await events(cloning_rest, f"{path}?after_sequence=2", last_event_id="5") == changes[5:]
    assert await events(cloning_rest, f"{path}?after_sequence=2", last_event_id="") == changes[2:]


async def test_a_watch_that_can_bring_nothing_more_ends_for_good(
    cloning_rest: httpx.AsyncClient, cloning: Script
) -> None:
    last = str(len(STATES))
    watch, joint_watch = f"/v1/clone/{CLONE_ID}/watch", f"/v1/clones/watch?clone_id={CLONE_ID}"

    answers = [
        await cloning_rest.get(watch, headers={"last-event-id": last}),
        await cloning_rest.get(f"{watch}?after_sequence={last}"),
        await cloning_rest.get(joint_watch, headers={"last-event-id": last}),
    ]

    # After a stream that ends `EventSource` would connect again.
    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 3
    assert not any("content-type" in answer.headers for answer in answers)


@pytest.mark.parametrize("last_event_id", ["abc", "-1", "1&clone_id=x", "9" * 5_000])
async def test_an_id_that_is_none_of_a_stream_is_refused(
    cloning_rest: httpx.AsyncClient, cloning: Script, last_event_id: str
) -> None:
    path = f"/v1/clone/{CLONE_ID}/watch"
    answer = await cloning_rest.get(path, headers={"last-event-id": last_event_id})

    assert answer.status_code == 400
    message = "the Last-Event-ID header must be the id of an event of this stream"
    assert answer.json() == {"code": 3, "message": message, "details": [info("MALFORMED_REQUEST")]}
    assert cloning.calls == []


async def test_a_word_that_looks_like_an_event_starts_none(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    words = '\n\ndata: {"sequence":99,"status":"Å"}\n\n'
    cloning.late_error = failure(grpc.StatusCode.FAILED_PRECONDITION, "GATE_NOT_PASSED", words=words)

    async with cloning_rest.stream("GET", f"/v1/clone/{CLONE_ID}/watch") as answer:
        (change,) = [frame async for frame in frames(answer)]

    assert change["error"]["details"][0]["metadata"]["words"] == words


async def test_a_class_is_watched_on_one_connection(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    path = "/v1/clones/watch?clone_id=c1&clone_ids=c2&student_id=alex&student_ids=kim&after_sequence=8"

    async with cloning_rest.stream("GET", path) as answer:
        changes = [frame async for frame in frames(answer)]

    request = cloning.calls[0].request
    assert isinstance(request, cloning_pb.WatchClonesRequest)
    assert ([*request.clone_ids], [*request.student_ids]) == (["c1", "c2"], ["alex", "kim"])
    assert answer.headers["content-type"] == EVENT_STREAM
    assert [change["sequence"] for change in changes] == list(range(9, 4 * len(STATES) + 1))
    assert {(change["clone_id"], change["student_id"]) for change in changes} == {
        ("c1", "student123"),
        ("c2", "student123"),
        ("clone_of_alex", "alex"),
        ("clone_of_kim", "kim"),
    }


async def test_the_largest_joint_watch_passes(cloning_rest: httpx.AsyncClient, cloning: Script) -> None:
    clone_ids, student_ids = ([f"{kind}{n:063}" for n in range(100)] for kind in "cs")
    query = "&".join([*(f"clone_id={each}" for each in clone_ids), *(f"student_id={each}" for each in student_ids)])

    answer = await cloning_rest.get(f"/v1/clones/watch?{query}&after_sequence={200 * len(STATES)}")

    assert answer.status_code == 204
    request = cloning.calls[0].request
    assert isinstance(request, cloning_pb.WatchClonesRequest)
    assert ([*request.clone_ids], [*request.student_ids]) == (clone_ids, student_ids)
    # The query is in no header that a server gets: gRPC bounds those.
    assert all(len(value) < 100 for value in cloning.calls[0].metadata.values())
