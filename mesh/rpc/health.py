"""Health by the standard protocol, `grpc.health.v1`: per service, and for the server as a whole under the empty name.

Load balancers, Kubernetes and Envoy read this; people read each server's own `GetHealth`. Under the name `liveness` it
says whether the process is worth keeping: a server that is not ready, as while a store is down, is alive.
"""

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from mesh.background import BackgroundTask
from mesh.log import get_logger

# How long health may lag behind a service. Asking costs a function call.
FOLLOW_SECONDS = 0.1
SERVICE = "grpc.health.v1.Health"
LIVENESS = "liveness"

_log = get_logger(__name__)


class Health(BackgroundTask):
    """Reports whether each service is ready, until the server drains. Follows them while it is entered.

    Args:
        is_alive: Whether the process is worth keeping.

    Attributes:
        serving: What was last reported: whether each service is ready; the server as a whole has the empty name.
    """

    # A server whose health is no longer up to date must not go on.
    max_restarts = 0

    def __init__(self, is_alive: Callable[[], bool]) -> None:
        self._servicer = health_aio.HealthServicer()
        self._is_alive = is_alive
        self._ready: dict[str, Callable[[], bool]] = {}
        self._is_draining = False
        self._refresh_lock = asyncio.Lock()
        self.serving: dict[str, bool] = {}

    def add(self, service: str, ready: Callable[[], bool]) -> None:
        """Adds a service, which serves while `ready` returns True."""
        self._ready[service] = ready

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the health service to a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def refresh(self) -> None:
        """Asks every service and notifies watchers of changes. The server serves if all its services do."""
        # One at a time: a refresh that began before a drain must not report after it that a service serves.
        async with self._refresh_lock:
            serving = {service: not self._is_draining and ready() for service, ready in self._ready.items()}
            serving[""] = all(serving.values())
            serving[LIVENESS] = self._is_alive()
            for service, is_serving in serving.items():
                if self.serving.get(service) != is_serving:
                    self.serving[service] = is_serving
                    _log.info("health_changed", name=service or "server", serving=is_serving)
                    kind = health_pb2.HealthCheckResponse
                    await self._servicer.set(service, kind.SERVING if is_serving else kind.NOT_SERVING)

    async def drain(self) -> None:
        """Reports from now on that no service serves. A process that drains is alive."""
        self._is_draining = True
        await self.refresh()

    async def _run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(FOLLOW_SECONDS)
