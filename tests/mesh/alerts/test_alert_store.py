"""Alerts in a real Valkey: they count, resume, are acknowledged, erased and delivered."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from importlib import resources
from typing import Any

import pytest
from redis.asyncio import Redis

from mesh.alerts.alert import NewFinding
from mesh.alerts.alert_store import AlertStore
from mesh.errors import AlertCorrupt, AlertNotFound, AlertStoreUnavailable
from mesh.valkey.connection import open_redis
from mesh.valkey.script import names_of, read_source
from testing.parts.fault_proxy import FaultProxy, Way
from testing.parts.stores import RedisEndpoint
from testing.waiting import until

SCRIPTS = sorted(
    file.name.removesuffix(".lua")
    for file in resources.files("mesh.alerts.scripts").iterdir()
    if file.name.endswith(".lua")
)


@pytest.fixture
async def redis(redis_endpoint: RedisEndpoint) -> AsyncIterator[Redis]:
    async with open_redis(redis_endpoint.url) as client:
        yield client


@pytest.fixture
def tenant() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def store(redis: Redis, tenant: str) -> AlertStore:
    return AlertStore(redis, tenant=tenant)


def finding(
    student_id: str = "ada", *, category: str = "self_harm", probability: float = 0.9, action: int = 3
) -> NewFinding:
    return NewFinding(
        finding_id=uuid.uuid4().hex, student_id=student_id, probabilities={category: probability}, action=action,
        text="PROMPT", guard="rules", request_id="call-1",
    )  # fmt: skip


async def test_thirty_findings_of_a_student_are_one_alert_that_counts(store: AlertStore) -> None:
    alert_ids = await asyncio.gather(*(store.record(finding(probability=0.5 + n / 100)) for n in range(30)))
    (alert_id,) = set(alert_ids)
    alert = await store.find(alert_id)
    assert (alert.count, alert.student_id, alert.action) == (30, "ada", 3)
    assert alert.probabilities == {"self_harm": 0.79}
    assert alert.create_time <= alert.update_time
    assert [listed.alert_id for listed in await store.list_latest(below=None, limit=9)] == [alert_id]


async def test_a_finding_that_is_sent_twice_counts_once(store: AlertStore) -> None:
    twice = finding()
    alert_id = await store.record(twice)
    assert await store.record(twice) == alert_id
    assert (await store.find(alert_id)).count == 1


async def test_an_alert_holds_all_categories_and_the_gravest_action(store: AlertStore) -> None:
    await store.record(finding(category="violence", action=2))
    await store.record(finding(category="self_harm", action=3))
    alert_id = await store.record(finding(category="hate", action=2))
    alert = await store.find(alert_id)
    assert (set(alert.probabilities), alert.action, alert.count) == ({"violence", "self_harm", "hate"}, 3, 3)


async def test_students_have_alerts_of_their_own_and_calls_without_a_student_one_each(store: AlertStore) -> None:
    alert_ids = [await store.record(finding(student_id)) for student_id in ("ada", "ben", "", "")]
    assert len(set(alert_ids)) == 4
    assert [alert.alert_id for alert in await store.list_latest(student_id="ben", below=None, limit=9)] == alert_ids[
        1:2
    ]


async def test_after_its_window_a_finding_raises_a_new_alert(redis: Redis, tenant: str) -> None:
    store = AlertStore(redis, tenant=tenant, window=timedelta(milliseconds=50))
    first = await store.record(finding())

    async def is_another() -> bool:
        return await store.record(finding()) != first

    await until(is_another, seconds=10)


async def test_after_an_acknowledgement_a_finding_raises_a_new_alert(store: AlertStore) -> None:
    first = await store.record(finding())
    acknowledged = await store.acknowledge(first, acknowledged_by="Ms. Rivera")
    assert acknowledged.acknowledge_time
    assert (acknowledged.acknowledged_by, acknowledged.count) == ("Ms. Rivera", 1)
    assert await store.acknowledge(first, acknowledged_by="somebody else") == acknowledged
    assert await store.record(finding()) != first


async def test_what_comes_after_a_number_is_every_alert_that_changed_since_in_its_latest_state(
    store: AlertStore,
) -> None:
    first, second = await store.record(finding("ada")), await store.record(finding("ben"))
    seen = await store.read_after(0, limit=9)
    assert [(alert.alert_id, alert.sequence) for alert in seen] == [(first, 1), (second, 2)]
    await store.record(finding("ada"))
    await store.record(finding("ada"))
    assert [(alert.alert_id, alert.count) for alert in await store.read_after(2, limit=9)] == [(first, 3)]
    assert await store.read_after(4, limit=9) == []
    assert [alert.alert_id for alert in await store.read_after(0, limit=1)] == [second]
    assert await store.latest_sequence() == 4


async def test_erasing_a_student_leaves_no_trace_of_them_and_the_alerts_of_others(
    store: AlertStore, redis: Redis, tenant: str
) -> None:
    alert_id = await store.record(finding("student-to-erase"), with_webhook=True)
    other_id = await store.record(finding("ben"))
    assert await store.erase("student-to-erase") == 1
    assert await store.erase("student-to-erase") == 0
    with pytest.raises(AlertNotFound):
        await store.find(alert_id)
    assert [alert.alert_id for alert in await store.read_after(0, limit=9)] == [other_id]
    keys = [key async for key in redis.scan_iter(match=f"*{tenant}*")]
    assert keys
    stored = list(keys) + [str(await redis.dump(key)) for key in keys]
    assert not [value for value in stored if "student-to-erase" in value or alert_id in value]


async def test_an_erasure_whose_answer_is_lost_still_tells_how_many_alerts_it_removed(
    store: AlertStore, redis_endpoint: RedisEndpoint, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.acknowledge(await store.record(finding("ada")), acknowledged_by="")
    await store.record(finding("ada"))
    host, _, port = redis_endpoint.url.removesuffix("/0").rpartition(":")
    async with FaultProxy(int(port)) as proxy, open_redis(f"{host}:{proxy.port}/0") as redis:
        behind_proxy = AlertStore(redis, tenant=tenant)
        # From now on Valkey has the script, so that it runs at the first call.
        assert await behind_proxy.erase("nobody") == 0
        erase = behind_proxy._erase

        async def erase_and_lose_answer(**named: object) -> object:
            proxy.cut_next(Way.ANSWERS)
            return await erase(**named)  # type: ignore[arg-type] # passed on as they came

        monkeypatch.setattr(behind_proxy, "_erase", erase_and_lose_answer)
        assert await behind_proxy.erase("ada") == 2
    assert await store.erase("ada") == 0


async def test_with_a_retention_time_alerts_expire_by_themselves(redis: Redis, tenant: str) -> None:
    store = AlertStore(redis, tenant=tenant, retention=timedelta(milliseconds=100))
    alert_id = await store.record(finding("ada"))

    async def is_gone() -> bool:
        return not await store.list_latest(below=None, limit=9)

    await until(is_gone, seconds=10)
    with pytest.raises(AlertNotFound):
        await store.acknowledge(alert_id, acknowledged_by="")
    kept_id = await AlertStore(redis, tenant=tenant).record(finding("ben"))
    assert await redis.zrange(f"{{aivo:{tenant}}}:alerts", 0, -1) == [kept_id]


async def test_one_alert_is_delivered_by_one_brain_at_a_time(store: AlertStore) -> None:
    alert_id = await store.record(finding(), with_webhook=True)
    await store.record(finding(), with_webhook=True)
    claims = await asyncio.gather(*(store.claim_deliveries(limit=9, seconds=60) for _ in range(3)))
    assert sorted(claims) == [[], [], [(alert_id, 1)]]
    await store.delay_delivery(alert_id, seconds=0.001)

    async def second_attempt() -> bool:
        return await store.claim_deliveries(limit=9, seconds=60) == [(alert_id, 2)]

    await until(second_attempt, seconds=10)
    await store.end_delivery(alert_id, attempt=2)
    await store.delay_delivery(alert_id, seconds=0.001)
    assert await store.claim_deliveries(limit=9, seconds=60) == []


async def test_an_alert_is_delivered_again_once_something_else_is_found(store: AlertStore) -> None:
    alert_id = await store.record(finding(category="distress"), with_webhook=True)
    assert await store.claim_deliveries(limit=9, seconds=60) == [(alert_id, 1)]
    # While the first delivery is under way.
    assert await store.record(finding(category="self_harm"), with_webhook=True) == alert_id
    await store.end_delivery(alert_id, attempt=1)
    ((again_id, attempt),) = await store.claim_deliveries(limit=9, seconds=60)
    assert again_id == alert_id
    await store.end_delivery(alert_id, attempt=attempt)
    await store.record(finding(category="self_harm"), with_webhook=True)
    assert await store.claim_deliveries(limit=9, seconds=60) == []


async def test_a_store_that_is_down_is_a_typed_error() -> None:
    async with open_redis("redis://127.0.0.1:1/0") as nobody:
        with pytest.raises(AlertStoreUnavailable, match="alert store"):
            await AlertStore(nobody, tenant="default").record(finding())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_uses_every_key_and_argument_of_its_header_and_no_other(name: str) -> None:
    source = read_source("mesh.alerts.scripts", name)
    code = re.sub(r"--[^\n]*", "", source)
    for table, names in zip(("keys", "args"), names_of(source), strict=True):
        assert set(re.findall(rf"\b{table}\.(\w+)", code)) == {each.removesuffix("...") for each in names}


@pytest.mark.parametrize("fields", [{"count": "many"}, {"create_milliseconds": "9" * 30}, {"action": b"\xff"}])
async def test_an_alert_that_can_not_be_read_is_left_out_of_lists(
    store: AlertStore, redis: Redis, tenant: str, fields: dict[Any, Any]
) -> None:
    unreadable, other = await store.record(finding("ada")), await store.record(finding("ben"))
    await redis.hset(f"{{aivo:{tenant}}}:alert:{unreadable}", mapping=fields)
    with pytest.raises(AlertCorrupt):
        await store.find(unreadable)
    with pytest.raises(AlertCorrupt):
        await store.acknowledge(unreadable, acknowledged_by="Ms. Rivera")
    assert [alert.alert_id for alert in await store.list_latest(below=None, limit=9)] == [other]
    assert [alert.alert_id for alert in await store.read_after(0, limit=9)] == [other]


async def test_a_page_of_alerts_that_can_not_be_read_hides_no_other(
    store: AlertStore, redis: Redis, tenant: str
) -> None:
    first = await store.record(finding("ada"))
    for student_id in ("ben", "eva"):
        unreadable = await store.record(finding(student_id))
        await redis.hset(f"{{aivo:{tenant}}}:alert:{unreadable}", "count", "many")
    last = await store.record(finding("kim"))

    assert [alert.alert_id for alert in await store.list_latest(below=None, limit=2)] == [last, first]
    assert [alert.alert_id for alert in await store.read_after(0, limit=2)] == [first, last]
    assert [alert.alert_id for alert in await store.read_after(1, limit=1)] == [last]


async def test_a_finding_after_an_alert_that_lost_its_count_raises_a_new_alert(
    store: AlertStore, redis: Redis, tenant: str
) -> None:
    unreadable = await store.record(finding("ada"))
    await redis.hdel(f"{{aivo:{tenant}}}:alert:{unreadable}", "count", "action")
    assert await store.record(finding("ada")) != unreadable
    assert [alert.student_id for alert in await store.list_latest(below=None, limit=9)] == ["ada"]
    with pytest.raises(AlertCorrupt):
        await store.acknowledge(unreadable, acknowledged_by="Ms. Rivera")
