"""The cloning server at its limits: watchers, a long history of commits, and the largest orders."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1.student_service_pb2 import DeleteStudentRequest
from google.protobuf import json_format

from benchmarks.cloning_process import watching
from benchmarks.figures import Figure, Goal, percentiles
from benchmarks.limits_site import RunningCloning, Site, run_cloning
from cloning_server.clones.codec import encode_baseline
from cloning_server.edge import order_wire
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef, TenantKeys
from mesh.valkey.connection import open_redis
from testing.adapters import publish
from testing.baseline import start_body
from testing.models.random_adapters import random_weights, recipe

# Calls at the same time while something is prepared.
_AT_ONCE = 8
# Between two calls of GetClone while clones are watched.
_PROBE_SECONDS = 0.05


async def watchers(site: Site) -> AsyncIterator[Figure]:
    """Measures GetClone while clones wait and are watched.

    A watch is broken if it ends, or is silent for two heartbeats.
    """
    probes = site.pick(600, 40)
    async with run_cloning(
        site, tenant="watchers", clone_queue_limit=site.clones, caller_limit=site.watchers + 100
    ) as cloning:
        clone_ids = await _start_clones(cloning, site.clones)
        alone = percentiles(await _probe(cloning, clone_ids, count=probes))
        heartbeat_seconds = cloning.settings.heartbeat_seconds
        async with watching(
            cloning.address, clone_ids, count=site.watchers, silence_seconds=2 * heartbeat_seconds
        ) as crowd:
            watched = percentiles(await _probe(cloning, clone_ids, count=probes))
            report = await crowd.report()
    size = {"watchers": site.watchers, "clones": site.clones}
    yield Figure(
        figure="get_clone_while_clones_are_watched",
        value=watched["p99"],
        unit="ms (p99)",
        baseline=alone["p99"],
        baseline_of="the same without watchers",
        goal=Goal(of="value", at_most=250),
        facts={**watched, **size, "calls": probes},
    )
    yield Figure(
        figure="broken_watches",
        value=report.broken.total(),
        unit="watches",
        goal=Goal(of="value", at_most=0),
        facts={
            **size,
            "broken": dict(report.broken),
            "messages": report.messages,
            "longest_first_seconds": report.longest_first_seconds,
            "longest_silence_seconds": report.longest_silence_seconds,
        },
    )


async def deletion(site: Site) -> AsyncIterator[Figure]:
    """Measures DeleteStudent in a tenant with a long history: commits of clones whose versions are other students'."""
    commits, students = site.pick(10_000, 50), site.pick(10, 2)
    async with run_cloning(site, tenant="deletion") as cloning:
        await _write_commits(cloning, commits)
        seconds = []
        for number in range(students):
            student_id = f"deleted-{number}"
            weights = await asyncio.to_thread(random_weights, number)
            for _ in range(2):
                await publish(cloning.store, student_id, weights, recipe=recipe(base_digest="0" * 64))
            await cloning.clones.StartClone(_order(student_id))
            started_at = time.perf_counter()
            receipt = await cloning.students.DeleteStudent(DeleteStudentRequest(student_id=student_id))
            seconds.append(time.perf_counter() - started_at)
            assert (receipt.models.versions, receipt.clones.clones) == (2, 1), receipt
    yield Figure(
        figure="delete_student_among_commits",
        value=max(seconds),
        unit="s (longest)",
        goal=Goal(of="value", at_most=1),
        facts={"commits": commits, "students": students, **percentiles(seconds)},
    )


async def orders(site: Site) -> AsyncIterator[Figure]:
    """Measures what a full queue of the largest orders takes in Valkey."""
    async with run_cloning(site, tenant="orders") as cloning, open_redis(site.redis.url) as redis:
        count = site.pick(cloning.settings.clone_queue_limit, 4)
        order = _largest_order(cloning.settings.clone_order_bytes)
        before = await redis.info("memory")
        for number in range(count):
            order.student_id = f"largest-{number}"
            await cloning.clones.StartClone(order)
        after = await redis.info("memory")
    yield Figure(
        figure="largest_orders_in_valkey",
        value=(after["used_memory"] - before["used_memory"]) / 1e6,
        unit="MB",
        goal=Goal(of="value", at_most=256),
        facts={
            "orders": count,
            "order_bytes": cloning.settings.clone_order_bytes,
            "resident_mb": round((after["used_memory_rss"] - before["used_memory_rss"]) / 1e6, 1),
        },
    )


def _order(student_id: str) -> pb.StartCloneRequest:
    return json_format.ParseDict(start_body(student_id), pb.StartCloneRequest())


def _largest_order(limit_bytes: int) -> pb.StartCloneRequest:
    """Returns an order whose baseline takes all the bytes that the store gives it."""
    order = _order("largest")
    del order.baseline_data.responses[:]
    while _bytes_of(order) <= limit_bytes:
        number = len(order.baseline_data.responses)
        order.baseline_data.responses.add(question=f"{number} {'q' * 3_990}", student_answer="a" * 4_000)
    excess = _bytes_of(order) - limit_bytes
    last = order.baseline_data.responses[-1]
    last.student_answer = last.student_answer[: max(1, 4_000 - excess)]
    last.question = last.question[: len(last.question) - max(0, excess - 3_999)]
    assert limit_bytes - 1_000 <= _bytes_of(order) <= limit_bytes
    return order


def _bytes_of(order: pb.StartCloneRequest) -> int:
    return len(encode_baseline(order_wire.order_from(order).baseline))


async def _start_clones(cloning: RunningCloning, count: int) -> list[str]:
    """Starts a clone per student; returns their ids."""
    orders = iter([_order(f"student-{number}") for number in range(count)])
    clone_ids: list[str] = []

    async def start_rest() -> None:
        # All share the iterator, so each takes the next order.
        clone_ids.extend([(await cloning.clones.StartClone(order)).clone_id for order in orders])

    await asyncio.gather(*(start_rest() for _ in range(_AT_ONCE)))
    return clone_ids


async def _probe(cloning: RunningCloning, clone_ids: Sequence[str], *, count: int) -> list[float]:
    """Calls GetClone at fixed intervals, whether or not earlier calls are answered; returns milliseconds."""
    chance = random.Random(7)
    started_at = time.perf_counter()

    async def call(due_at: float) -> float:
        await cloning.clones.GetClone(pb.GetCloneRequest(clone_id=chance.choice(clone_ids)))
        return (time.perf_counter() - due_at) * 1e3

    calls = []
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due_at = started_at + number * _PROBE_SECONDS
            # The sleep is the interval itself.
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            calls.append(group.create_task(call(due_at)))
    return [call.result() for call in calls]


async def _write_commits(cloning: RunningCloning, count: int) -> None:
    """Writes the commits of clones that were not erased, without their versions, which no deletion of others reads."""
    keys = TenantKeys(tenant=cloning.settings.tenant)
    template = recipe(base_digest="0" * 64)

    async def write(number: int) -> None:
        clone_id = f"clone_{number:016x}"
        ref = AdapterRef(student_id=f"other-{number}", version=1, tenant=keys.tenant)
        manifest = Manifest.of(b"weights", ref=ref, recipe=replace(template, clone_id=clone_id))
        await cloning.blobs.create(keys.commit(clone_id), manifest.to_json())

    for start in range(0, count, 100):
        await asyncio.gather(*map(write, range(start, min(count, start + 100))))
