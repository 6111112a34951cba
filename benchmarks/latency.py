"""How long it takes to change adapters, to meet a student for the first time, and to come in by the front door."""

import http.client
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import grpc
import torch
from aivo.brain.v1.brain_service_pb2 import GetHealthRequest
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub

from benchmarks import load
from benchmarks.baselines import PeftGenerate
from benchmarks.figures import Figure, Goal, percentiles
from benchmarks.stage import Stage
from brain_server.edge.health import HealthCheck
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.compute.slot_tables import SlotTables
from brain_server.torch_engine.engine import TorchEngine
from mesh.lm.llama_shape import Shape
from mesh.lm.lora import LoraSpec
from testing.parts.envoy import envoy
from testing.waiting import until_loaded

_MB = 1024 * 1024


async def resident(stage: Stage) -> AsyncIterator[Figure]:
    """An adapter's way into a slot, and a step with another slot, of the engine's own parts; beside PEFT's switch."""
    base = stage.base()
    few, many, repeats = 8, stage.pick(256, 16), stage.pick(50, 10)
    tables = {
        slots: SlotTables(Shape.of(base.model), spec=LoraSpec(), slots=slots, dtype=base.dtype, device=base.device)
        for slots in (few, many)
    }
    packed = [tables[few].pack(stage.students.state(number), scaling=LoraSpec().scaling) for number in range(few)]
    into = _times_into(tables, packed, repeats=repeats, device=base.device)
    alone, crowded = statistics.median(into[few]), statistics.median(into[many])
    switch = statistics.median(_times(lambda number: _step(tables[many], number % many, base.device), repeats))
    peft = PeftGenerate(base, few, state_of=stage.students.state)
    facts: dict[str, object] = {"adapters": many, "repeats": repeats, "peft_adapters": few}
    yield Figure(
        figure="switch_to_resident_adapter",
        value=switch,
        unit="ms",
        baseline=statistics.median(peft.switch(number % few) for number in range(repeats)),
        baseline_of="PEFT set_adapter",
        goal=Goal(of="value", at_most=1),
        facts=facts,
    )
    yield Figure(
        figure="host_to_device",
        value=crowded,
        unit="ms",
        baseline=alone,
        baseline_of=f"the same with {few} adapters present",
        goal=Goal(of="value", at_most=5),
        facts={**facts, "best_ms": min(into[many]), **percentiles(into[many])},
    )
    yield Figure(
        figure="host_to_device_growth",
        value=crowded / alone,
        unit="x",
        goal=Goal(of="value", at_most=1.5),
        facts={"what": f"{many} adapters present over {few}", **facts},
    )


async def cold(stage: Stage) -> AsyncIterator[Figure]:
    """First token for a student whom the brain never met, beside the same request again at once."""
    count = stage.pick(30, 4)
    warm_up, *ids = await stage.students.fresh(count + 1)
    first, again = [], []
    async with stage.brain() as brain:
        await load.together(brain.client, load.asks([warm_up] * 3, tokens=4), at_once=1)
        for ask in load.asks(ids, tokens=4):
            first.append(await load.reply(brain.client, ask))
            again.append(await load.reply(brain.client, ask))
    added = [sample.first_ms - other.first_ms for sample, other in zip(first, again, strict=True)]
    yield Figure(
        figure="cold_adapter_added",
        value=statistics.median(added),
        unit="ms",
        goal=Goal(of="value", at_most=60),
        facts={
            "adapters": count,
            **{f"added_{name}": value for name, value in percentiles(added).items()},
            "fetch_ms": statistics.median(sample.load_ms for sample in first),
            "first_token_ms_cold": statistics.median(sample.first_ms for sample in first),
            "first_token_ms_warm": statistics.median(sample.first_ms for sample in again),
        },
    )


async def gateway(stage: Stage) -> AsyncIterator[Figure]:
    """One unary call (GetHealth) four ways: its work alone, over gRPC, and through Envoy as gRPC and as REST.

    Clients are the leanest there are, blocking and on a connection that stays, so that it is the way that is measured.
    """
    calls = stage.pick(1000, 50)
    alone = await _work_alone(stage, calls)
    async with stage.brain() as brain:
        edge_folder = stage.folder / "envoy"
        edge_folder.mkdir()
        async with envoy(edge_folder, brain_address=brain.address, cloning_address=brain.address) as edge:
            times = {
                "grpc": _over_grpc(brain.address, calls),
                "envoy_grpc": _over_grpc(edge.brain_address, calls),
                "envoy_rest": _over_rest(edge.brain_address, calls),
            }
    for name, times_ms in times.items():
        yield Figure(
            figure=f"{name}_added",
            value=statistics.median(times_ms) - alone,
            unit="ms",
            goal=Goal(of="value", at_most=2) if name.startswith("envoy") else None,
            facts={"calls": calls, "work_alone_ms": alone, **percentiles(times_ms)},
        )


async def _work_alone(stage: Stage, calls: int) -> float:
    """Median milliseconds of what GetHealth does, in this process."""
    settings = EngineSettings(
        base_model=stage.files.name,
        model_cache_dir=stage.files.path.parent,
        device=stage.options.device,
        dtype=stage.options.dtype,
        kv_cache_bytes=256 * _MB,
    )
    async with TorchEngine.open(settings, stage.store) as engine:
        await until_loaded(engine)
        async with HealthCheck(engine, adapters=stage.store, is_draining=lambda: False) as health:
            times = []
            for _ in range(calls):
                began_at = time.perf_counter()
                await health.report()
                times.append((time.perf_counter() - began_at) * 1e3)
    return statistics.median(times)


def _times_into(
    tables: Mapping[int, SlotTables], packed: Sequence[SlotWeights], *, repeats: int, device: torch.device
) -> dict[int, list[float]]:
    """Milliseconds of each copy into tables that are full, by their slots."""

    def put(slots: int, number: int) -> None:
        tables[slots].put(number % slots, packed[number % len(packed)])
        _finish(device)

    for slots in tables:
        for number in range(slots):
            put(slots, number)
    into: dict[int, list[float]] = {slots: [] for slots in tables}
    for number in range(repeats):
        # In turns, and each to another place than the one before.
        for slots, times in into.items():
            began_at = time.perf_counter()
            put(slots, number * 7)
            times.append((time.perf_counter() - began_at) * 1e3)
    return into


def _over_grpc(address: str, calls: int) -> list[float]:
    with grpc.insecure_channel(address) as channel:
        stub = BrainServiceStub(channel)
        return _times(lambda _: stub.GetHealth(GetHealthRequest()), calls)


def _over_rest(address: str, calls: int) -> list[float]:
    connection = http.client.HTTPConnection(address)

    def get(_number: int) -> None:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == http.HTTPStatus.OK, body

    try:
        return _times(get, calls)
    finally:
        connection.close()


def _times(work: Callable[[int], object], repeats: int) -> list[float]:
    """Milliseconds of each repetition, which is told its number; a few go before that are not counted."""
    for number in range(min(20, repeats)):
        work(number)
    times = []
    for number in range(repeats):
        began_at = time.perf_counter()
        work(number)
        times.append((time.perf_counter() - began_at) * 1e3)
    return times


def _step(tables: SlotTables, slot: int, device: torch.device) -> None:
    tables.step([slot], [])
    _finish(device)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
