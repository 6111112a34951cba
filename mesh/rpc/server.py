"""A gRPC server that is ready to run: health, reflection, figures, and an orderly end.

A drain is, in order: health says NOT_SERVING, new calls are refused with `SERVER_DRAINING`, running calls get
`drain_seconds` to finish, the rest are cancelled with `SERVER_DRAINING`, and the ports close.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

import grpc
from prometheus_client import CollectorRegistry

from mesh.background import BackgroundTask
from mesh.log import get_logger
from mesh.rpc import health, reflection
from mesh.rpc.interceptor import MAX_REQUEST_BYTES, CallInterceptor
from mesh.rpc.metrics import MetricsEndpoint, ServerCollector, new_registry
from mesh.rpc.ports import address_of, why_not
from mesh.rpc.validation import prepare

# What clients accept by default.
MAX_RESPONSE_BYTES = 4 << 20

# For what is on the wire once no call runs; long-lived watches of health would otherwise hold the server.
_FLUSH_SECONDS = 0.5

# `max_requests` of the gateway.
_MAX_PENDING_CALLS = 10_000

_OPTIONS = (
    # Twice what is parsed: a request between the two gets an error of ours, and one beyond is gRPC's to refuse.
    ("grpc.max_receive_message_length", 2 * MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    # Otherwise a second server on the same port starts without an error, and each gets some of the calls.
    ("grpc.so_reuseport", 0),
    # Bounds the time until a vanished caller is noticed, and its work stops.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Callers may ping every 10 s, which is as often as most clients let them; by default gRPC hangs up on them after
    # three pings within 5 minutes. Half of it, as pings that were sent evenly may arrive unevenly.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A call that a busy server has not taken up yet waits for as long as its caller does. By default gRPC ends it after
    # 30 s, with the code that it has when its caller cancels it.
    ("grpc.server_max_unrequested_time_in_server", 3_600),
    # So do the calls of a burst, as many as the gateway passes on. By default gRPC ends some of those beyond 1,000 at
    # random, with the same code.
    ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
)

ServicerT = TypeVar("ServicerT")
TaskT = TypeVar("TaskT", bound=BackgroundTask)

_log = get_logger(__name__)


class Server:
    """Serves until it is asked to stop, or until a background task that it watches has failed, then drains.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        metrics_port: Port of the figures, on the same address; 0 picks a free one, None serves none.
        drain_seconds: How long running calls may go on during the drain.
        reflection: Whether callers may ask what the server offers.
        caller_limit: Most calls that one caller may have at a time.
        idle_seconds: How long a connection may stay open without a call; None for ever.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        metrics_port: int | None,
        drain_seconds: float,
        reflection: bool = True,
        caller_limit: int = sys.maxsize,
        idle_seconds: int | None = None,
    ) -> None:
        self._host = host
        self._asked_port = port
        self._asked_metrics_port = metrics_port
        self._drain_seconds = drain_seconds
        self._reflection = reflection
        self._idle_seconds = idle_seconds
        self._registrations: list[Callable[[grpc.aio.Server], None]] = []
        self._services: list[str] = []
        self._stopping = asyncio.Event()
        self._has_signal = False
        self._tasks: list[BackgroundTask] = []
        self._health = self.watch(health.Health(lambda: not any(task.has_failed for task in self._tasks)))
        self._open = AsyncExitStack()
        self._port: int | None = None
        self._metrics_port: int | None = None
        self.registry: CollectorRegistry = new_registry()
        self.registry.register(ServerCollector(self._tasks, self._health.serving))
        self._interceptor = CallInterceptor(self.registry, caller_limit=caller_limit)

    def add(
        self,
        register: Callable[[ServicerT, grpc.aio.Server], None],
        servicer: ServicerT,
        *,
        service: str,
        ready: Callable[[], bool],
    ) -> None:
        """Adds a service; before the start.

        Args:
            register: The generated `add_…Servicer_to_server`.
            servicer: What answers.
            service: Full name, such as `aivo.brain.v1.BrainService`.
            ready: Whether the service can answer now. Asked many times a second: must be quick and not raise.
        """
        self._registrations.append(partial(register, servicer))
        self._services.append(service)
        self._health.add(service, ready)
        prepare(service)

    def watch(self, task: TaskT) -> TaskT:
        """Returns a background task whose failure ends the server, and which liveness and metrics show from now on."""
        self._tasks.append(task)
        task.call_on_failure(self._stopping.set)
        return task

    @property
    def task_faults(self) -> tuple[str, ...]:
        """Why background tasks do not run that should; see `BackgroundTask.fault`."""
        return tuple(task.fault for task in self._tasks if task.fault)

    @property
    def port(self) -> int:
        """Port that the server listens on, once started."""
        assert self._port is not None, "not started"
        return self._port

    @property
    def metrics_port(self) -> int | None:
        """Port of the figures, once started; None if there are none."""
        return self._metrics_port

    @property
    def draining(self) -> bool:
        """Whether the server drains."""
        return self._interceptor.draining

    async def start(self) -> None:
        """Listens and takes calls.

        Raises:
            PortTaken: If another process listens on one of the ports.
            OSError: If the address can't be listened on for another reason.
        """
        async with AsyncExitStack() as opening:
            if self._asked_metrics_port is not None:
                metrics = MetricsEndpoint(self._host, self._asked_metrics_port, registry=self.registry)
                opening.push_async_callback(metrics.close)
                self._metrics_port = metrics.port
            server = self._build()
            try:
                self._port = server.add_insecure_port(address_of(self._host, self._asked_port))
            except RuntimeError:
                raise why_not(self._host, self._asked_port) from None
            await self._health.refresh()
            await opening.enter_async_context(self._health)
            opening.push_async_callback(server.stop, _FLUSH_SECONDS)
            opening.push_async_callback(self._drain)
            await server.start()
            self._open = opening.pop_all()
        _log.info("serving", address=address_of(self._host, self.port), metrics_port=self._metrics_port)

    async def stop(self) -> None:
        """Drains and closes; does nothing if the server does not run."""
        # Taken first: a second stop while this one drains must not close what it waits for.
        closing, self._open = self._open, AsyncExitStack()
        await closing.aclose()

    async def serve_until_signal(self) -> None:
        """Serves until SIGTERM, SIGINT or a failure of a background task, then drains. Starts if need be.

        A second signal cuts the drain short. Leaving the task that failed raises `TaskFailed`.

        Raises:
            OSError: As `start` does.
            TaskFailed: A service could not say whether it is ready.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._request_stop)
        try:
            if self._port is None:
                await self.start()
            # What exists by now stays. Each full collection would go through it, mostly imported code, and hold up all
            # calls for a third of a second.
            gc.collect()
            gc.freeze()
            await self._stopping.wait()
        finally:
            await self.stop()
            # Where the process goes on, what is left of this server can be freed.
            gc.unfreeze()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _request_stop(self) -> None:
        # Not the first signal after a failure, which has begun a drain too: Kubernetes sends one then.
        if self._has_signal:
            self._interceptor.cut()
        self._has_signal = True
        self._stopping.set()

    def _build(self) -> grpc.aio.Server:
        options = list(_OPTIONS)
        if self._idle_seconds is not None:
            options.append(("grpc.max_connection_idle_ms", 1_000 * self._idle_seconds))
        server = grpc.aio.server(interceptors=[self._interceptor], options=options)
        for register in self._registrations:
            register(server)
        self._health.register(server)
        if self._reflection:
            reflection.add_reflection(server, [*self._services, health.SERVICE])
        return server

    async def _drain(self) -> None:
        _log.info("draining", seconds=self._drain_seconds)
        await self._health.drain()
        self._interceptor.drain()
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._interceptor.wait_idle()
        except TimeoutError:
            _log.warning("drain_cut")
            self._interceptor.cut()
