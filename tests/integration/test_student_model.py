"""A student's model from the assessment to the answer, through the gateway, on the real stack."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import boto3
import httpx
import pytest
import redis.asyncio as redis
from safetensors import safe_open

from testing.baseline import NAME, STUDENT_WORD, start_body
from testing.parts.stack import Stack

if TYPE_CHECKING:
    # Types alone; boto3 makes its clients at run time.
    from mypy_boto3_s3 import S3Client

WORDS = [
    "queued",
    "loading_base_model",
    "creating_adapter",
    "fine_tuning",
    "optimizing",
    "saving",
    "deploying",
    "completed",
]
# As the seed's document has it, word for word.
SEED_PROMPT: dict[str, Any] = {
    "prompt": "Explain photosynthesis in simple terms",
    "context": {
        "student_id": "student123",
        "grade": "5",
        "subject": "Science",
        "learning_style": "visual",
        "disability": "adhd",
    },
    "temperature": 0.7,
}


async def frames_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The messages of a server-sent event stream."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def watch(cloning: httpx.AsyncClient, clone_id: str, *, after: int | None = None) -> list[dict[str, Any]]:
    query = "" if after is None else f"?after_sequence={after}"
    async with cloning.stream("GET", f"/v1/clone/{clone_id}/watch{query}") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return [frame async for frame in frames_of(response)]


@pytest.fixture(scope="module")
async def cloned(aivo: Stack) -> list[dict[str, Any]]:
    """The seed's student, cloned once: what the watcher saw."""
    async with httpx.AsyncClient(base_url=aivo.edge.cloning_url, timeout=300) as cloning:
        started = await cloning.post("/v1/clone/start", json=start_body("student123"))
        assert started.status_code == httpx.codes.OK, started.text
        body = started.json()
        assert body["student_id"] == "student123"
        assert body["status"] == "cloning_started"
        assert body["estimated_time_seconds"] > 0
        return await watch(cloning, body["clone_id"], after=0)


async def test_a_clone_goes_through_every_state_in_order(cloned: list[dict[str, Any]]) -> None:
    changes = [frame for frame in cloned if not frame["heartbeat"]]
    states = [frame["status"] for frame in changes]

    assert list(dict.fromkeys(states)) == WORDS
    assert [frame["sequence"] for frame in changes] == list(range(1, len(changes) + 1))
    progress = [frame["progress"] for frame in changes]
    assert progress == sorted(progress)
    assert progress[-1] == 100
    # Steps that were done, not a jump from nothing to all.
    assert len({frame["progress"] for frame in changes if frame["status"] == "fine_tuning"}) > 2


async def test_status_after_the_end_is_that_of_the_seed(
    cloned: list[dict[str, Any]], cloning: httpx.AsyncClient
) -> None:
    status = (await cloning.get(f"/v1/clone/{cloned[-1]['clone_id']}/status")).json()

    assert status["status"] == "completed"
    assert status["progress"] == 100
    assert status["message"]
    assert status["model"]["metrics"]["heldout_loss_adapter"] < status["model"]["metrics"]["heldout_loss_base"]


async def test_a_watch_resumes_after_any_change_with_nothing_lost_or_repeated(
    cloned: list[dict[str, Any]], cloning: httpx.AsyncClient
) -> None:
    changes = [frame for frame in cloned if not frame["heartbeat"]]
    for seen_count in (1, len(changes) // 2, len(changes) - 1):
        assert await watch(cloning, changes[0]["clone_id"], after=seen_count) == changes[seen_count:]


async def test_the_adapter_is_in_s3_as_safetensors(
    cloned: list[dict[str, Any]], aivo: Stack, cloning: httpx.AsyncClient, tmp_path: Any
) -> None:
    models = (await cloning.get("/v1/students/student123/models")).json()
    assert models["active_version"] == models["models"][0]["version"] == 1

    s3 = _s3_client(aivo)
    s3.download_file(aivo.bucket, "default/student123/v1/adapter_model.safetensors", str(tmp_path / "adapter"))
    with safe_open(tmp_path / "adapter", framework="np") as weights:
        assert all(".lora_A." in name or ".lora_B." in name for name in weights.keys())  # noqa: SIM118 - no mapping
    assert (tmp_path / "adapter").stat().st_size <= 4_000_000


async def test_replies_name_the_adapter_and_differ_from_the_base_model(
    cloned: list[dict[str, Any]], brain: httpx.AsyncClient
) -> None:
    sha256 = cloned[-1]["model"]["sha256"]
    question = SEED_PROMPT | {"temperature": 0, "max_tokens": 40}
    own = (await brain.post("/v1/generate", json=question)).json()
    base = (await brain.post("/v1/generate", json=question | {"adapter_policy": "ADAPTER_POLICY_BASE_ONLY"})).json()

    assert own["adapter"] == {"student_id": "student123", "version": 1, "sha256": sha256}
    assert "fallback" not in own
    assert base["fallback"] == "FALLBACK_REASON_BASE_ONLY"
    assert "adapter" not in base or base["adapter"] is None
    assert own["response"] != base["response"]


async def test_the_seeds_generate_gets_the_seeds_shape(cloned: list[dict[str, Any]], brain: httpx.AsyncClient) -> None:
    reply = (await brain.post("/v1/generate", json=SEED_PROMPT | {"max_tokens": 30})).json()

    assert reply["response"]
    assert reply["model"] == "SmolLM2-135M-Instruct"
    assert reply["tokens_used"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]
    assert reply["timestamp"].endswith("Z")
    assert len(reply["timestamp"]) == len("2025-01-15T10:30:00Z")


async def test_a_stream_arrives_frame_by_frame(cloned: list[dict[str, Any]], brain: httpx.AsyncClient) -> None:
    question = SEED_PROMPT | {"temperature": 0, "max_tokens": 40}
    unary = (await brain.post("/v1/generate", json=question)).json()
    chunks = []
    async with brain.stream("POST", "/v1/generate/stream", json=question) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        # As the network delivers them.
        chunks = [chunk.decode() async for chunk in response.aiter_raw()]

    frames = [json.loads(line.removeprefix("data: ")) for line in "".join(chunks).splitlines() if line]
    pieces = [frame["text"] for frame in frames[:-1]]
    assert len(chunks) > 3
    assert [frame["sequence"] for frame in frames] == list(range(1, len(frames) + 1))
    assert "".join(pieces) == frames[-1]["finished"]["response"] == unary["response"]
    assert frames[-1]["finished"]["adapter"] == unary["adapter"]


async def test_the_seeds_assess_gets_the_seeds_shape(aivo: Stack, brain: httpx.AsyncClient) -> None:
    body = {
        "student_response": "Plants make food from sunlight",
        "criteria": {"subject": "Science", "grade": "5", "learning_objective": "Understand photosynthesis"},
    }
    verdict = (await brain.post("/v1/assess", json=body)).json()

    assert 0 <= verdict["correctness"] <= 100
    assert verdict["understanding_level"] in {"excellent", "good", "developing", "beginning"}
    assert verdict["feedback"]
    assert isinstance(verdict["strengths"], list)
    assert isinstance(verdict["areas_for_improvement"], list)
    assert verdict["next_steps"]
    assert sum(verdict["probabilities"].values()) == pytest.approx(1)


async def test_health_has_the_seeds_shape(aivo: Stack, brain: httpx.AsyncClient, cloning: httpx.AsyncClient) -> None:
    for client in (brain, cloning):
        health = (await client.get("/health")).json()
        expected = {"status": "healthy", "model_loaded": True, "device": "cpu", "model_name": "SmolLM2-135M-Instruct"}
        assert expected.items() <= health.items()
        assert health["gpu_available"] is False


async def test_a_brain_that_is_restarted_under_a_running_clone_is_waited_for(
    cloned: list[dict[str, Any]], aivo: Stack, cloning: httpx.AsyncClient
) -> None:
    clone_id = (await cloning.post("/v1/clone/start", json=start_body("restarted"))).json()["clone_id"]
    async with cloning.stream("GET", f"/v1/clone/{clone_id}/watch") as response:
        async for frame in frames_of(response):
            if frame["status"] == "fine_tuning":
                await aivo.brain_server.part.kill()
            if frame["status"] == "deploying" and not frame["heartbeat"]:
                break
    await aivo.brain_server.part.start()

    assert (await watch(cloning, clone_id))[-1]["status"] == "completed"
    await aivo.wait_healthy()


async def test_a_cloning_server_that_is_killed_takes_its_clone_up_again(
    cloned: list[dict[str, Any]], aivo: Stack, cloning: httpx.AsyncClient
) -> None:
    clone_id = (await cloning.post("/v1/clone/start", json=start_body("resumed"))).json()["clone_id"]
    last = {}
    async with cloning.stream("GET", f"/v1/clone/{clone_id}/watch") as response:
        async for frame in frames_of(response):
            last = frame
            if frame["status"] == "fine_tuning":
                break
    await aivo.cloning_server.part.kill()
    await aivo.cloning_server.part.start()
    await aivo.wait_healthy()

    rest = [frame for frame in await watch(cloning, clone_id, after=last["sequence"]) if not frame["heartbeat"]]
    assert rest[0]["sequence"] == last["sequence"] + 1
    assert rest[-1]["status"] == "completed"
    assert rest[-1]["attempt"] == 2
    models = (await cloning.get("/v1/students/resumed/models")).json()["models"]
    assert [model["version"] for model in models] == [1]


async def test_the_students_name_and_words_are_nowhere(cloned: list[dict[str, Any]], aivo: Stack) -> None:
    """Neither in a log, nor, once the clone has ended, in the stores."""
    places = {str(log): log.read_bytes() for log in aivo.folder.glob("*/log")}
    assert len(places) == 3
    async with redis.from_url(aivo.redis.url) as store:
        async for key in store.scan_iter():
            dump = await _value(store, key)
            places[f"redis {key!r}"] = key + dump
    s3 = _s3_client(aivo)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=aivo.bucket):
        for item in page.get("Contents", []):
            content = await asyncio.to_thread(s3.get_object(Bucket=aivo.bucket, Key=item["Key"])["Body"].read)
            places[f"s3 {item['Key']}"] = item["Key"].encode() + content

    words = [NAME.encode(), STUDENT_WORD.encode(), b"Explain photosynthesis"]
    assert [(place, word) for place, content in places.items() for word in words if word in content] == []


async def _value(store: Any, key: bytes) -> bytes:
    match await store.type(key):
        case b"string":
            return bytes(await store.get(key))
        case b"hash":
            return repr(await store.hgetall(key)).encode()
        case b"stream":
            return repr(await store.xrange(key)).encode()
        case b"zset":
            return repr(await store.zrange(key, 0, -1)).encode()
        case b"set":
            return repr(await store.smembers(key)).encode()
        case b"list":
            return repr(await store.lrange(key, 0, -1)).encode()
        case kind:
            raise AssertionError(f"a kind of value that this test can't read: {kind!r}")


def _s3_client(aivo: Stack) -> "S3Client":
    return boto3.client(
        "s3",
        endpoint_url=aivo.s3.url,
        aws_access_key_id=aivo.s3.access_key,
        aws_secret_access_key=aivo.s3.secret_key,
        region_name="us-east-1",
    )
