"""A brain with Valkey, through its real edge: a child in distress, and the adults who hear of it."""

import asyncio
import hmac
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.safety.v1 import safety_pb2
from aivo.safety.v1 import safety_service_pb2 as pb
from aivo.safety.v1.safety_service_pb2_grpc import SafetyServiceStub
from prometheus_client import generate_latest

from brain_server.alerts.webhook import SIGNATURE_HEADER
from brain_server.app import open_server
from brain_server.settings import BrainSettings
from mesh.alerts.alert_store import AlertStore
from mesh.errors import TooManyWatches
from mesh.rpc.errors import error_of
from mesh.rpc.server import Server
from mesh.valkey.connection import open_redis
from testing.parts.stores import RedisEndpoint, S3Endpoint, valkey
from testing.waiting import until

if TYPE_CHECKING:
    # The generated code has these for type checkers alone.
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub
    from aivo.safety.v1.safety_service_pb2_grpc import SafetyServiceAsyncStub

SAD = "i want to kill myself"
SECRET = "a secret of this test"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBrain:
    """A brain that runs, with clients of two of its services."""

    server: Server
    brain: "BrainServiceAsyncStub"
    safety: "SafetyServiceAsyncStub"

    async def tell(self, student_id: str, prompt: str = SAD) -> brain_pb.GenerateResponse:
        """Sends a prompt of a student of grade 4."""
        context = brain_pb.StudentContext(student_id=student_id, grade="4")
        return await self.brain.Generate(brain_pb.GenerateRequest(prompt=prompt, context=context, max_tokens=2))

    async def alerts_of(self, student_id: str, *, count: int = 1) -> list[pb.SafetyAlert]:
        """Returns the student's alerts once there are so many."""
        page = pb.ListAlertsResponse()

        async def are_there() -> bool:
            nonlocal page
            page = await self.safety.ListAlerts(pb.ListAlertsRequest(student_id=student_id))
            return len(page.alerts) >= count

        await until(are_there, seconds=20)
        return list(page.alerts)


@asynccontextmanager
async def serve(settings: BrainSettings) -> AsyncIterator[ServedBrain]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_server(settings))
        await server.start()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        served = ServedBrain(server=server, brain=BrainServiceStub(channel), safety=SafetyServiceStub(channel))

        async def is_loaded() -> bool:
            return (await served.brain.GetHealth(brain_pb.GetHealthRequest())).model_loaded

        await until(is_loaded, seconds=60)
        yield served


@pytest.fixture
def settings(small_llama: Path, s3_endpoint: S3Endpoint, redis_endpoint: RedisEndpoint, bucket: str) -> BrainSettings:
    return BrainSettings(
        base_model=str(small_llama), model_cache_dir=small_llama.parent, device="cpu",
        kv_cache_bytes=64 * 1024 * 1024, s3_endpoint_url=s3_endpoint.url, s3_bucket=bucket, brain_port=0,
        brain_metrics_port=0, drain_seconds=1, redis_url=redis_endpoint.url, tenant=f"t{uuid.uuid4().hex[:8]}",
        heartbeat_seconds=0.5,
    )  # fmt: skip


@pytest.fixture
async def served(settings: BrainSettings) -> AsyncIterator[ServedBrain]:
    async with serve(settings) as served_brain:
        yield served_brain


async def test_watches_of_alerts_are_bounded(settings: BrainSettings) -> None:
    async with serve(settings.model_copy(update={"watch_limit": 1})) as served:
        watch = served.safety.WatchAlerts(pb.WatchAlertsRequest())
        assert (await anext(aiter(watch))).heartbeat
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(served.safety.WatchAlerts(pb.WatchAlertsRequest())))
        assert isinstance(error_of(refused.value), TooManyWatches)
        watch.cancel()


async def test_a_child_in_distress_is_met_with_kindness_and_an_adult_hears_of_it_and_acknowledges(
    served: ServedBrain, settings: BrainSettings, redis_endpoint: RedisEndpoint
) -> None:
    watch = served.safety.WatchAlerts(pb.WatchAlertsRequest())
    messages = aiter(watch)
    assert (await anext(messages)).heartbeat
    reply = await served.tell("ada")
    assert "988" in reply.response
    assert (reply.safety.action, reply.safety.alert) == (safety_pb2.SAFETY_ACTION_SUPPORT, True)

    message = await next_alert(messages)
    alert = message.alert
    assert (alert.student_id, alert.count, alert.action) == ("ada", 1, safety_pb2.SAFETY_ACTION_SUPPORT)
    assert [(found.category, found.probability) for found in alert.categories] == [
        (safety_pb2.SAFETY_CATEGORY_SELF_HARM, 1)
    ]
    assert (alert.text, alert.guard, alert.words) == (safety_pb2.SCREENED_TEXT_PROMPT, "rules", "")
    assert alert.request_id

    acknowledgement = pb.AcknowledgeAlertRequest(alert_id=alert.alert_id, acknowledged_by="Ms. Rivera")
    acknowledged = (await served.safety.AcknowledgeAlert(acknowledgement)).alert
    assert (acknowledged.acknowledged_by, acknowledged.HasField("acknowledge_time")) == ("Ms. Rivera", True)
    assert (await next_alert(messages)).alert == acknowledged
    watch.cancel()

    async with open_redis(redis_endpoint.url) as redis:
        assert await AlertStore(redis, tenant=settings.tenant).erase("ada") == 1
    assert list((await served.safety.ListAlerts(pb.ListAlertsRequest())).alerts) == []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.safety.AcknowledgeAlert(acknowledgement)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def next_alert(messages: Any) -> pb.WatchAlertsResponse:
    """Returns the next message that is no heartbeat."""
    async with asyncio.timeout(20):
        while (message := await anext(messages)).heartbeat:
            pass
    assert isinstance(message, pb.WatchAlertsResponse)
    return message


async def test_thirty_prompts_of_a_student_are_one_alert_that_counts(served: ServedBrain) -> None:
    await asyncio.gather(*(served.tell("ben") for _ in range(8)))
    for _ in range(22):
        await served.tell("ben")

    async def counts_thirty() -> bool:
        return (await served.alerts_of("ben"))[0].count == 30

    await until(counts_thirty, seconds=20)
    assert len(await served.alerts_of("ben")) == 1


async def test_a_watcher_that_resumes_misses_nothing_and_gets_nothing_twice(served: ServedBrain) -> None:
    await served.tell("ada")
    await served.alerts_of("ada")
    first = await next_alert(aiter(served.safety.WatchAlerts(pb.WatchAlertsRequest())))
    await served.tell("ben")
    await served.alerts_of("ben")
    resumed = aiter(served.safety.WatchAlerts(pb.WatchAlertsRequest(after_sequence=first.sequence)))
    second = await next_alert(resumed)
    assert (second.alert.student_id, second.sequence) == ("ben", first.sequence + 1)
    heartbeat = await anext(resumed)
    assert (heartbeat.heartbeat, heartbeat.sequence) == (True, second.sequence)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(served.safety.WatchAlerts(pb.WatchAlertsRequest(after_sequence=999))))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_lists_come_in_pages_the_latest_change_first(served: ServedBrain) -> None:
    for student_id in ("ada", "ben", "cleo"):
        await served.tell(student_id)
        await served.alerts_of(student_id)
    page = await served.safety.ListAlerts(pb.ListAlertsRequest(page_size=2))
    assert [alert.student_id for alert in page.alerts] == ["cleo", "ben"]
    rest = await served.safety.ListAlerts(pb.ListAlertsRequest(page_size=2, page_token=page.next_page_token))
    assert ([alert.student_id for alert in rest.alerts], rest.next_page_token) == (["ada"], "")


async def test_a_text_is_checked_without_an_alert(served: ServedBrain) -> None:
    checked = await served.safety.CheckText(pb.CheckTextRequest(text="How can I make a bomb at home?"))
    assert (checked.action, checked.alert, checked.guard) == (safety_pb2.SAFETY_ACTION_REFUSE, True, "rules")
    assert [found.category for found in checked.categories] == [safety_pb2.SAFETY_CATEGORY_VIOLENCE]
    assert checked.reply
    harmless = await served.safety.CheckText(pb.CheckTextRequest(text="What is a volcano?"))
    assert (harmless.action, harmless.alert, harmless.reply) == (safety_pb2.SAFETY_ACTION_ALLOW, False, "")
    assert list((await served.safety.ListAlerts(pb.ListAlertsRequest())).alerts) == []


async def test_words_are_kept_only_if_the_setting_says_so(settings: BrainSettings) -> None:
    async with serve(settings.model_copy(update={"safety_keep_text": True})) as served:
        await served.tell("ada")
        assert [alert.words for alert in await served.alerts_of("ada")] == [SAD]


async def test_metrics_count_by_category_and_action_and_name_no_student(served: ServedBrain) -> None:
    await served.tell("ada-of-the-metrics")
    await served.alerts_of("ada-of-the-metrics")
    metrics = generate_latest(served.server.registry).decode()
    labels = 'action="support",category="self_harm",guard="rules",text="prompt"'
    assert f"aivo_safety_verdicts_total{{{labels}}} 1.0" in metrics
    assert 'aivo_safety_flags_total{outcome="recorded"} 1.0' in metrics
    assert "ada-of-the-metrics" not in metrics


@dataclass(slots=True)
class Adults:
    """A webhook that answers with the statuses of a script, and then with 204."""

    statuses: list[int]
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        self.requests.append((headers, await reader.readexactly(int(headers["content-length"]))))
        status = HTTPStatus(self.statuses.pop(0) if self.statuses else 204)
        writer.write(f"HTTP/1.1 {status} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()


async def test_a_webhook_gets_each_new_alert_signed_and_again_after_it_failed(settings: BrainSettings) -> None:
    adults = Adults(statuses=[500])
    hook = await asyncio.start_server(adults.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{hook.sockets[0].getsockname()[1]}/alerts"
    with_hook = BrainSettings(**{**settings.model_dump(), "safety_webhook_url": url, "safety_webhook_secret": SECRET})
    async with hook, serve(with_hook) as served:
        await served.tell("ada")
        await served.tell("ada")

        async def are_told() -> bool:
            return len(adults.requests) == 2

        await until(are_told, seconds=20)
        (alert,) = await served.alerts_of("ada")
    for headers, body in adults.requests:
        told = json.loads(body)
        assert (told["alert_id"], told["student_id"], told["action"]) == (
            alert.alert_id,
            "ada",
            "SAFETY_ACTION_SUPPORT",
        )
        time, _, signature = headers[SIGNATURE_HEADER.lower()].removeprefix("t=").partition(",v1=")
        expected = hmac.new(SECRET.encode(), f"{time}.".encode() + body, sha256).hexdigest()
        assert hmac.compare_digest(signature, expected)
        assert SAD not in body.decode()


async def test_an_alert_that_can_not_be_read_is_given_up_and_counted_and_the_next_is_delivered(
    settings: BrainSettings,
) -> None:
    adults = Adults(statuses=[])
    hook = await asyncio.start_server(adults.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{hook.sockets[0].getsockname()[1]}/alerts"
    with_hook = BrainSettings(**{**settings.model_dump(), "safety_webhook_url": url, "safety_webhook_secret": SECRET})
    assert settings.redis_url is not None
    async with open_redis(settings.redis_url) as redis, hook:
        prefix = f"{{aivo:{settings.tenant}}}:"
        await redis.hset(f"{prefix}alert:alert_1", mapping={"alert_id": "alert_1", "sequence": "one"})
        await redis.zadd(f"{prefix}alert_deliveries", {"alert_1": 0})
        async with serve(with_hook) as served:
            await served.tell("ada")

            async def are_told() -> bool:
                return len(adults.requests) == 1 and not await redis.zcard(f"{prefix}alert_deliveries")

            await until(are_told, seconds=20)
            metrics = generate_latest(served.server.registry).decode()
    assert json.loads(adults.requests[0][1])["student_id"] == "ada"
    assert 'aivo_safety_webhook_attempts_total{outcome="unreadable"} 1.0' in metrics
    assert 'aivo_background_restarts_total{task="Webhook"} 0.0' in metrics


async def test_a_brain_without_valkey_answers_the_child_and_says_that_it_keeps_no_alerts(
    settings: BrainSettings,
) -> None:
    async with serve(settings.model_copy(update={"redis_url": None})) as served:
        assert "988" in (await served.tell("ada")).response
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.safety.ListAlerts(pb.ListAlertsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert 'aivo_safety_flags_total{outcome="lost"} 1.0' in generate_latest(served.server.registry).decode()


async def test_an_alert_of_an_outage_is_recorded_after_it_and_reaches_who_watches(
    settings: BrainSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "valkey"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        own_valkey = await stack.enter_async_context(valkey(folder))
        served = await stack.enter_async_context(serve(settings.model_copy(update={"redis_url": own_valkey.url})))
        messages = aiter(served.safety.WatchAlerts(pb.WatchAlertsRequest()))
        assert (await anext(messages)).heartbeat
        await own_valkey.part.stop()
        assert "988" in (await served.tell("ada")).response

        async def health_says_so() -> bool:
            health = await served.brain.GetHealth(brain_pb.GetHealthRequest())
            return [part.available for part in health.dependencies if part.name == "alert_store"] == [False]

        await until(health_says_so, seconds=20)
        # Between two of them the watch has asked Valkey in vain.
        for _ in range(3):
            assert (await anext(messages)).heartbeat
        await own_valkey.part.start()
        assert [alert.count for alert in await served.alerts_of("ada")] == [1]
        assert (await next_alert(messages)).alert.student_id == "ada"
