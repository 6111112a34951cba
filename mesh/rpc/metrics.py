"""Figures of every RPC, of health and of background tasks in Prometheus' format, and the HTTP endpoint that shows them.

Labels are names of services, methods, codes and tasks, never of students.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.background import BackgroundTask
from mesh.rpc.ports import with_address

# From a lookup in memory to a long generation. Watches of clones fall into the last bucket.
_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LABELS = ("service", "method")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodMeter:
    """The meters of one method."""

    calls: Counter
    in_flight: Gauge
    duration_seconds: Histogram
    first_message_seconds: Histogram
    service: str
    method: str
    _counters: dict[str, Counter] = field(default_factory=dict)

    def count(self, code: str) -> None:
        """Counts a call that ended with a code."""
        counter = self._counters.get(code)
        if counter is None:
            counter = self._counters[code] = self.calls.labels(self.service, self.method, code)
        counter.inc()


class CallMetrics:
    """The meters of all methods of a server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter("aivo_rpc_calls", "Calls that ended, by code.", (*_LABELS, "code"), registry=registry)
        self._in_flight = Gauge("aivo_rpc_in_flight", "Calls that run.", _LABELS, registry=registry)
        self._duration = Histogram(
            "aivo_rpc_duration_seconds", "From arrival to end.", _LABELS, buckets=_BUCKETS_SECONDS, registry=registry
        )
        self._first_message = Histogram(
            "aivo_rpc_first_message_seconds",
            "From arrival to the first message of a stream.",
            _LABELS,
            buckets=_BUCKETS_SECONDS,
            registry=registry,
        )

    def of(self, service: str, method: str) -> MethodMeter:
        """Returns the meters of a method; the endpoint shows them from now on, starting at zero."""
        return MethodMeter(
            calls=self._calls,
            in_flight=self._in_flight.labels(service, method),
            duration_seconds=self._duration.labels(service, method),
            first_message_seconds=self._first_message.labels(service, method),
            service=service,
            method=method,
        )


class ServerCollector(Collector):
    """Shows what `grpc.health` says, and how the background tasks are.

    Args:
        tasks: The tasks; more may be added.
        serving: Whether each service is ready; the server as a whole has the empty name.
    """

    def __init__(self, tasks: Sequence[BackgroundTask], serving: Mapping[str, bool]) -> None:
        self._tasks = tasks
        self._serving = serving

    def collect(self) -> Iterable[Metric]:
        """Reads both once."""
        health = GaugeMetricFamily("aivo_serving", "Whether grpc.health says SERVING.", labels=("service",))
        for service, is_serving in tuple(self._serving.items()):
            health.add_metric((service,), is_serving)
        running = GaugeMetricFamily("aivo_background_running", "Whether a background task runs.", labels=("task",))
        restarts = CounterMetricFamily(
            "aivo_background_restarts", "How often a background task was started again.", labels=("task",)
        )
        for task in tuple(self._tasks):
            running.add_metric((task.name,), task.is_running)
            restarts.add_metric((task.name,), task.restarts)
        return health, running, restarts


class MetricsEndpoint:
    """Serves a registry at `/metrics` on a thread of its own.

    Raises:
        PortTaken: If another process listens on the port.
    """

    def __init__(self, host: str, port: int, *, registry: CollectorRegistry) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise with_address(error, host, port) from None
        self.port: int = self._server.server_port

    async def close(self) -> None:
        """Stops serving."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def new_registry() -> CollectorRegistry:
    """Returns a registry with the figures of this process; one per server, so that several fit into one process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
