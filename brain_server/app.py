"""Assembles the brain. Parts start from top to bottom, and stop from bottom to top."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import timedelta

from aivo.brain.v1.adapter_service_pb2_grpc import add_AdapterServiceServicer_to_server
from aivo.brain.v1.brain_service_pb2_grpc import add_BrainServiceServicer_to_server
from aivo.safety.v1.safety_service_pb2_grpc import add_SafetyServiceServicer_to_server

from brain_server.alerts.feed import AlertFeed
from brain_server.alerts.recorder import AlertRecorder
from brain_server.alerts.webhook import Webhook
from brain_server.assess.assessor import Assessor
from brain_server.edge.alert_wire import json_of
from brain_server.edge.health import BrainHealthCheck
from brain_server.edge.metrics import EngineCollector, ReplyMetrics, SafetyMetrics
from brain_server.edge.safety_servicer import AlertParts, SafetyServicer
from brain_server.edge.servicer import AdapterServicer, BrainServicer
from brain_server.safety.agent import SafetyAgent
from brain_server.safety.assessing import ScreenedAssessor
from brain_server.settings import BrainSettings
from brain_server.torch_engine.engine import TorchEngine
from brain_server.vllm_engine.engine import VllmEngine
from mesh.adapters.notices import Listener
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.alerts.alert_store import AlertStore
from mesh.rpc.server import Server
from mesh.rpc.watch_places import WatchPlaces
from mesh.valkey.connection import open_redis
from mesh.valkey.wakeups import Wakeups

BRAIN_SERVICE = "aivo.brain.v1.BrainService"
ADAPTER_SERVICE = "aivo.brain.v1.AdapterService"
SAFETY_SERVICE = "aivo.safety.v1.SafetyService"


async def run(settings: BrainSettings) -> None:
    """Serves until SIGTERM, SIGINT or a failure of a background task, then drains.

    Raises:
        OSError: The server can't listen on its address.
        TaskFailed: A background task kept crashing.
    """
    async with open_server(settings) as server:
        await server.serve_until_signal()


@asynccontextmanager
async def open_server(settings: BrainSettings) -> AsyncIterator[Server]:
    """Yields the server, ready to start; drains it on exit.

    Does not wait for the base model, nor for the store: the server starts without them, and its health reports that.
    Without Redis, or while it is down, the brain notices a new version, or that a student was deleted, when what it has
    read of the store expires. Without Redis it keeps no alerts; while Redis is down, they wait.
    """
    async with AsyncExitStack() as stack:
        server = _server(settings)
        adapters = AdapterStore(await stack.enter_async_context(S3Blobs.of(settings)), tenant=settings.tenant)
        engine = server.watch(await _open_engine(stack, settings, adapters))
        if settings.redis_url is not None:
            server.watch(await stack.enter_async_context(_listener(settings, settings.redis_url, engine)))

        server.registry.register(EngineCollector(engine))
        safety_metrics = SafetyMetrics(server.registry)
        alerts = await _open_alerts(stack, server, settings, safety_metrics)
        recorder = server.watch(await stack.enter_async_context(_recorder(settings, alerts, safety_metrics)))
        agent = SafetyAgent.of(engine, settings, on_flag=recorder.add, observe=safety_metrics.observe)
        stack.push_async_callback(agent.finish)
        health = await stack.enter_async_context(
            BrainHealthCheck(
                engine,
                adapters=adapters,
                safety=settings.safety,
                alerts=alerts.store if alerts else None,
                is_draining=lambda: server.draining,
                task_faults=lambda: server.task_faults,
            )
        )
        brain_servicer = BrainServicer(
            engine,
            agent=agent,
            assessor=ScreenedAssessor(Assessor(engine), agent),
            health=health,
            observe=ReplyMetrics(server.registry).observe,
        )

        def is_ready() -> bool:
            return engine.facts.ready

        watch_places = WatchPlaces(limit=settings.watch_limit)
        safety_servicer = SafetyServicer(agent, alerts=alerts, watch_places=watch_places)
        server.add(add_BrainServiceServicer_to_server, brain_servicer, service=BRAIN_SERVICE, ready=is_ready)
        server.add(
            add_AdapterServiceServicer_to_server, AdapterServicer(engine), service=ADAPTER_SERVICE, ready=is_ready
        )
        # Adults hear of alerts also while no model is loaded.
        server.add(add_SafetyServiceServicer_to_server, safety_servicer, service=SAFETY_SERVICE, ready=lambda: True)
        stack.push_async_callback(server.stop)
        yield server


def _listener(settings: BrainSettings, redis_url: str, engine: TorchEngine | VllmEngine) -> Listener:
    pointers = engine.pointers
    return Listener(
        redis_url,
        tenant=settings.tenant,
        on_moved=pointers.mark_stale,
        on_deleted=lambda student_id: len(engine.forget(student_id)),
        on_gap=pointers.mark_all_stale,
        on_heard=pointers.mark_heard,
    )


async def _open_alerts(
    stack: AsyncExitStack, server: Server, settings: BrainSettings, metrics: SafetyMetrics
) -> AlertParts | None:
    """Opens the alert store, its feed and the webhook; returns None without Redis."""
    if settings.redis_url is None:
        return None
    redis = await stack.enter_async_context(aclosing(open_redis(settings.redis_url)))
    store = AlertStore(redis, tenant=settings.tenant, retention=timedelta(days=settings.safety_alert_days))
    wakeups = server.watch(await stack.enter_async_context(Wakeups(redis, store.channel)))
    if settings.safety_webhook_url and settings.safety_webhook_secret:
        webhook = Webhook(
            store,
            wakeups=wakeups,
            url=settings.safety_webhook_url,
            secret=settings.safety_webhook_secret.get_secret_value(),
            encode=json_of,
            observe=metrics.count_delivery,
        )
        server.watch(await stack.enter_async_context(webhook))
    return AlertParts(store=store, feed=AlertFeed(store, wakeups=wakeups, heartbeat_seconds=settings.heartbeat_seconds))


def _recorder(settings: BrainSettings, alerts: AlertParts | None, metrics: SafetyMetrics) -> AlertRecorder:
    return AlertRecorder(
        alerts.store if alerts else None,
        counter=metrics,
        keep_text=settings.safety_keep_text,
        with_webhook=settings.safety_webhook_url is not None,
    )


async def _open_engine(
    stack: AsyncExitStack, settings: BrainSettings, adapters: AdapterStore
) -> TorchEngine | VllmEngine:
    if settings.engine == "vllm":
        return await stack.enter_async_context(VllmEngine.open(settings, adapters))
    return await stack.enter_async_context(TorchEngine.open(settings, adapters))


def _server(settings: BrainSettings) -> Server:
    return Server(
        host=settings.brain_host,
        port=settings.brain_port,
        metrics_port=settings.brain_metrics_port,
        drain_seconds=settings.drain_seconds,
        reflection=settings.reflection,
        caller_limit=settings.caller_limit,
        idle_seconds=settings.connection_idle_seconds,
    )
