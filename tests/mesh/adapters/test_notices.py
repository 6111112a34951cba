"""Notices through the real Valkey: their content, who receives them, and what an outage costs."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from mesh.adapters import notices
from mesh.adapters.notices import InformedBrains, Listener, announce, announce_deletion, channel_of
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import AdapterRef
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from testing.adapters import publish
from testing.parts.stores import RedisEndpoint, valkey
from tests.mesh.adapters.conftest import recipe, weights

SHA256 = "ab" * 32
WAIT_SECONDS = 20


class Inbox:
    """What a listener receives: students, and None for a gap; deleted students with a dash before them.

    Attributes:
        heard: Is set each time that Redis is heard.
    """

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self._received: asyncio.Queue[str | None] = asyncio.Queue()

    def listener(self, endpoint: RedisEndpoint, *, tenant: str) -> Listener:
        put = self._received.put_nowait
        return Listener(
            endpoint.url,
            tenant=tenant,
            on_moved=put,
            on_deleted=self._delete,
            on_gap=partial(put, None),
            on_heard=self.heard.set,
        )

    async def next(self) -> str | None:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._received.get()

    @property
    def empty(self) -> bool:
        return self._received.empty()

    def _delete(self, student_id: str) -> int:
        self._received.put_nowait(f"-{student_id}")
        return len(student_id)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def redis(redis_endpoint: RedisEndpoint) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_endpoint.url) as client:
        yield client


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisEndpoint]:
    """A Valkey that a test may stop."""
    async with valkey(tmp_path) as endpoint:
        yield endpoint


def active(student: str, *, tenant: str, version: int = 1) -> ActiveAdapter:
    return ActiveAdapter(ref=AdapterRef(student_id=student, version=version, tenant=tenant), sha256=SHA256)


async def test_a_notice_reaches_the_listeners_of_its_tenant_alone(
    redis: Redis, redis_endpoint: RedisEndpoint, inbox: Inbox, tenant: str
) -> None:
    others = Inbox()
    async with inbox.listener(redis_endpoint, tenant=tenant), others.listener(redis_endpoint, tenant=f"{tenant}-2"):
        assert (await inbox.next(), await others.next()) == (None, None)
        await announce(redis, active("ada", tenant=tenant))
        await announce(redis, active("bob", tenant=f"{tenant}-2"))

        assert (await inbox.next(), await others.next()) == ("ada", "bob")
        assert inbox.empty


async def test_a_notice_says_version_and_identity_and_nothing_else(redis: Redis, tenant: str) -> None:
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(channel_of(tenant))
        assert await pubsub.get_message(timeout=WAIT_SECONDS) is None, "the subscription stands"
        await announce(redis, active("ada", tenant=tenant, version=7))
        message = await pubsub.get_message(timeout=WAIT_SECONDS)

    assert message is not None
    assert json.loads(message["data"]) == {"student_id": "ada", "version": 7, "sha256": SHA256}


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"\xff\xfe",
        b"ada",
        b"[]",
        b'{"student_id": "ada", "version": 1}',
        b'{"student_id": "ada", "version": "1", "sha256": "%s"}' % SHA256.encode(),
        b'{"student_id": "ada", "version": 0, "sha256": "%s"}' % SHA256.encode(),
        b'{"student_id": "ada", "version": 1, "sha256": "short"}',
        b'{"student_id": "../ada", "version": 1, "sha256": "%s"}' % SHA256.encode(),
        b'{"student_id": "ada", "version": 1, "sha256": "%s", "prompt": "secret"}' % SHA256.encode(),
        b'{"deleted_student_id": "ada"}',
        b'{"deleted_student_id": "../ada", "deletion_id": "%s"}' % (b"ab" * 16),
        b'{"deleted_student_id": "ada", "deletion_id": "another:key"}',
    ],
)
async def test_a_malformed_notice_does_nothing_and_is_logged_once_without_what_it_said(
    redis: Redis, redis_endpoint: RedisEndpoint, inbox: Inbox, tenant: str, malformed: bytes
) -> None:
    with capture_logs() as logs:
        async with inbox.listener(redis_endpoint, tenant=tenant):
            assert await inbox.next() is None
            for _ in range(3):
                await redis.publish(channel_of(tenant), malformed)
            await announce(redis, active("bob", tenant=tenant))
            assert await inbox.next() == "bob"

    assert logs == [{"event": "pointer_notice_malformed", "log_level": "warning"}]


async def test_all_brains_that_listen_are_told_of_a_deletion_and_counted_once_they_have_forgotten(
    redis: Redis, redis_endpoint: RedisEndpoint, inbox: Inbox, tenant: str
) -> None:
    assert await announce_deletion(redis, "ada", tenant=tenant) == InformedBrains(listening=0, confirmed=0, adapters=0)
    second = Inbox()
    async with inbox.listener(redis_endpoint, tenant=tenant), second.listener(redis_endpoint, tenant=tenant):
        assert (await inbox.next(), await second.next()) == (None, None)

        informed = await announce_deletion(redis, "ada", tenant=tenant)

        assert informed == InformedBrains(listening=2, confirmed=2, adapters=2 * len("ada"))
        assert (await inbox.next(), await second.next()) == ("-ada", "-ada")
    keys = [key async for key in redis.scan_iter(f"*{tenant}*")]
    assert [await redis.ttl(key) > 0 for key in keys] == [True], "the answers expire by themselves"
    assert b"ada" not in b"".join(keys)


async def test_a_brain_that_does_not_answer_a_deletion_is_told_of_and_not_counted_as_forgetting(
    redis: Redis, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FORGET_SECONDS", 0.2)
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(channel_of(tenant))
        assert await pubsub.get_message(timeout=WAIT_SECONDS) is None, "the subscription stands"
        informed = await announce_deletion(redis, "ada", tenant=tenant)
    assert informed == InformedBrains(listening=1, confirmed=0, adapters=0)


async def test_a_deletion_that_can_not_be_told_is_logged(own_redis: RedisEndpoint, tenant: str) -> None:
    await own_redis.part.stop()
    with capture_logs() as logs:
        async with Redis.from_url(own_redis.url) as redis:
            assert await announce_deletion(redis, "ada", tenant=tenant) is None
    assert [line["event"] for line in logs] == ["deletion_notice_unsent"]


async def test_a_listener_knows_that_it_hears_also_while_nobody_says_anything(
    redis_endpoint: RedisEndpoint, inbox: Inbox, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "SILENCE_SECONDS", 0.1)
    async with inbox.listener(redis_endpoint, tenant=tenant), asyncio.timeout(WAIT_SECONDS):
        assert await inbox.next() is None
        for _ in range(3):
            inbox.heard.clear()
            await inbox.heard.wait()


async def test_a_listener_comes_back_after_an_outage_tells_of_the_gap_and_logs_it_once(
    own_redis: RedisEndpoint, inbox: Inbox, tenant: str
) -> None:
    with capture_logs() as logs:
        async with inbox.listener(own_redis, tenant=tenant), Redis.from_url(own_redis.url) as redis:
            assert await inbox.next() is None
            await own_redis.part.kill()
            await own_redis.part.start()
            assert await inbox.next() is None
            await announce(redis, active("ada", tenant=tenant))
            assert await inbox.next() == "ada"

    assert [line["event"] for line in logs] == ["pointer_notices_lost", "pointer_notices_back"]


async def test_a_redis_that_hangs_is_noticed(
    own_redis: RedisEndpoint, inbox: Inbox, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "SILENCE_SECONDS", 0.2)
    async with inbox.listener(own_redis, tenant=tenant), Redis.from_url(own_redis.url) as redis:
        assert await inbox.next() is None
        # Connections stay open; nobody answers.
        await redis.client_pause(1_000, all=True)
        assert await inbox.next() is None


async def test_a_redis_that_is_down_at_the_start_holds_up_neither_side(
    own_redis: RedisEndpoint, inbox: Inbox, tenant: str
) -> None:
    await own_redis.part.stop()
    with capture_logs() as logs:
        async with inbox.listener(own_redis, tenant=tenant), Redis.from_url(own_redis.url) as redis:
            await announce(redis, active("ada", tenant=tenant))
            assert inbox.empty
            await own_redis.part.start()
            assert await inbox.next() is None

    unsent = next(line for line in logs if line["event"] == "pointer_notice_unsent")
    assert unsent["ref"] == f"{tenant}/ada/v1"


async def test_publishing_announces_what_is_active_then(blobs: S3Blobs, student: str) -> None:
    announced: list[ActiveAdapter] = []

    async def note(moved: ActiveAdapter) -> None:
        assert await store.resolve_active(student) == moved, "a notice that comes before the move would be in vain"
        announced.append(moved)

    store = AdapterStore(blobs, announce=note)
    first = await publish(store, student, weights(), recipe=recipe("clone_1"))
    second = await publish(store, student, weights(seed=1), recipe=recipe("clone_2"))
    assert [active.ref for active in announced] == [first.ref, second.ref]

    # A worker that does not know whether its earlier attempt told anyone; one that was overtaken; and a roll back.
    await store.activate(student, 2)
    await store.activate(student, 1, only_forward=True)
    await store.activate(student, 1)
    assert [active.ref.version for active in announced] == [1, 2, 2, 1]
    assert announced[-1].sha256 == first.sha256
