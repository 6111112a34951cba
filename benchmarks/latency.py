"""Latency of switching adapters, of a student's first request, and of the gateway."""

import http.client
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import grpc
import torch
from aivo.brain.v1.brain_service_pb2 import GetHealthRequest
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub

from benchmarks import load
from benchmarks.figures import Figure, Goal, percentiles
from benchmarks.peft_generate import PeftGenerate
from benchmarks.rig import Rig
from brain_server.edge.health import BrainHealthCheck
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.compute.slot_tables import SlotTables
from brain_server.torch_engine.engine import TorchEngine
from mesh.lm.llama_shape import Shape
from mesh.lm.lora import LoraSpec
from testing.parts.envoy import envoy
from testing.waiting import until_loaded

_MB = 1024 * 1024


async def resident(rig: Rig) -> AsyncIterator[Figure]:
    """Measures loading an adapter into a slot and a step with another slot, on the engine's own tables, and PEFT."""
    base = rig.load_base_model()
    few, many, repeats = 8, rig.pick(256, 16), rig.pick(50, 10)
    tables = {
        slots: SlotTables(Shape.of(base.model), spec=LoraSpec(), slots=slots, dtype=base.dtype, device=base.device)
        for slots in (few, many)
    }
    packed = [tables[few].pack(rig.students.adapter_state(number), scaling=LoraSpec().scaling) for number in range(few)]
    load_times = _times_to_load(tables, packed, repeats=repeats, device=base.device)
    load_ms_few, load_ms_many = statistics.median(load_times[few]), statistics.median(load_times[many])
    step_ms = statistics.median(_times(lambda number: _step(tables[many], number % many, base.device), repeats))
    peft = PeftGenerate(base, few, state_of=rig.students.adapter_state)
    facts: dict[str, object] = {"adapters": many, "repeats": repeats, "peft_adapters": few}
    yield Figure(
        figure="switch_to_resident_adapter",
        value=step_ms,
        unit="ms",
        baseline=statistics.median(peft.switch(number % few) for number in range(repeats)),
        baseline_of="PEFT set_adapter",
        goal=Goal(of="value", at_most=1),
        facts=facts,
    )
    yield Figure(
        figure="host_to_device",
        value=load_ms_many,
        unit="ms",
        baseline=load_ms_few,
        baseline_of=f"the same with {few} adapters present",
        goal=Goal(of="value", at_most=5),
        facts={**facts, "best_ms": min(load_times[many]), **percentiles(load_times[many])},
    )
    yield Figure(
        figure="host_to_device_growth",
        value=load_ms_many / load_ms_few,
        unit="x",
        goal=Goal(of="value", at_most=1.5),
        facts={"what": f"{many} adapters present over {few}", **facts},
    )


async def cold(rig: Rig) -> AsyncIterator[Figure]:
    """Measures the first token of a student whose adapter is not loaded yet, and of the same request repeated."""
    count = rig.pick(30, 4)
    warm_up, *ids = await rig.students.new_ids(count + 1)
    cold_samples, warm_samples = [], []
    async with rig.brain() as brain:
        await load.closed_loop(brain.client, load.requests_of([warm_up] * 3, tokens=4), concurrency=1)
        for request in load.requests_of(ids, tokens=4):
            cold_samples.append(await load.send(brain.client, request))
            warm_samples.append(await load.send(brain.client, request))
    pairs = zip(cold_samples, warm_samples, strict=True)
    added_ms = [cold_sample.first_token_ms - warm_sample.first_token_ms for cold_sample, warm_sample in pairs]
    yield Figure(
        figure="cold_adapter_added",
        value=statistics.median(added_ms),
        unit="ms",
        goal=Goal(of="value", at_most=60),
        facts={
            "adapters": count,
            **{f"added_{name}": value for name, value in percentiles(added_ms).items()},
            "fetch_ms": statistics.median(sample.load_ms for sample in cold_samples),
            "first_token_ms_cold": statistics.median(sample.first_token_ms for sample in cold_samples),
            "first_token_ms_warm": statistics.median(sample.first_token_ms for sample in warm_samples),
        },
    )


async def gateway(rig: Rig) -> AsyncIterator[Figure]:
    """Measures one unary call (GetHealth): its work in process, over gRPC, and through Envoy as gRPC and as REST.

    Clients block and keep their connection, so that they add as little time as possible.
    """
    calls = rig.pick(1000, 50)
    work_ms = await _work_ms(rig, calls)
    async with rig.brain() as brain:
        edge_folder = rig.folder / "envoy"
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
            value=statistics.median(times_ms) - work_ms,
            unit="ms",
            goal=Goal(of="value", at_most=2) if name.startswith("envoy") else None,
            facts={"calls": calls, "work_alone_ms": work_ms, **percentiles(times_ms)},
        )


async def _work_ms(rig: Rig, calls: int) -> float:
    """Returns the median milliseconds of the work of GetHealth, done in this process."""
    settings = EngineSettings(
        base_model=rig.files.name,
        model_cache_dir=rig.files.path.parent,
        device=rig.options.device,
        dtype=rig.options.dtype,
        kv_cache_bytes=256 * _MB,
    )
    async with TorchEngine.open(settings, rig.store) as engine:
        await until_loaded(engine)
        async with BrainHealthCheck(engine, adapters=rig.store, is_draining=lambda: False) as health:
            times = []
            for _ in range(calls):
                started_at = time.perf_counter()
                await health.report()
                times.append((time.perf_counter() - started_at) * 1e3)
    return statistics.median(times)


def _times_to_load(
    tables: Mapping[int, SlotTables], packed: Sequence[SlotWeights], *, repeats: int, device: torch.device
) -> dict[int, list[float]]:
    """Returns the milliseconds of each copy into a full table, by the table's number of slots."""

    def put(slots: int, number: int) -> None:
        tables[slots].put(number % slots, packed[number % len(packed)])
        _synchronize(device)

    for slots in tables:
        for number in range(slots):
            put(slots, number)
    times_by_slots: dict[int, list[float]] = {slots: [] for slots in tables}
    for number in range(repeats):
        # The tables alternate, and each copy goes to another slot than the last one.
        for slots, times in times_by_slots.items():
            started_at = time.perf_counter()
            put(slots, number * 7)
            times.append((time.perf_counter() - started_at) * 1e3)
    return times_by_slots


def _over_grpc(address: str, calls: int) -> list[float]:
    with grpc.insecure_channel(address) as channel:
        stub = BrainServiceStub(channel)
        return _times(lambda _: stub.GetHealth(GetHealthRequest()), calls)


def _over_rest(address: str, calls: int) -> list[float]:
    connection = http.client.HTTPConnection(address)

    def get(_number: int) -> None:
        connection.request("GET", "/health")
        response = connection.getresponse()
        body = response.read()
        assert response.status == http.HTTPStatus.OK, body

    try:
        return _times(get, calls)
    finally:
        connection.close()


def _times(work: Callable[[int], object], repeats: int) -> list[float]:
    """Returns the milliseconds of each call of `work(number)`, after a few calls to warm up."""
    for number in range(min(20, repeats)):
        work(number)
    times = []
    for number in range(repeats):
        started_at = time.perf_counter()
        work(number)
        times.append((time.perf_counter() - started_at) * 1e3)
    return times


def _step(tables: SlotTables, slot: int, device: torch.device) -> None:
    tables.step([slot], [])
    _synchronize(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
