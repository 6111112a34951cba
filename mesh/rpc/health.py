"""Health by the standard protocol, `grpc.health.v1`: per service, and for the server as a whole under the empty name.

Load balancers, Kubernetes and Envoy read this; people read each server's own `GetHealth`.
"""

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from mesh.log import get_logger

# How long health may lag behind a service. Asking costs a function call.
FOLLOW_SECONDS = 0.1
SERVICE = "grpc.health.v1.Health"

_log = get_logger(__name__)


class Health:
    """Reports whether each service is ready, until the server drains."""

    def __init__(self) -> None:
        self._servicer = health_aio.HealthServicer()
        self._ready: dict[str, Callable[[], bool]] = {}
        self._serving: dict[str, bool] = {}

    def add(self, service: str, ready: Callable[[], bool]) -> None:
        """Adds a service, which serves while `ready` returns True."""
        self._ready[service] = ready

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the health service to a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def refresh(self) -> None:
        """Asks every service and notifies watchers of changes. The server serves if all its services do."""
        serving = {service: ready() for service, ready in self._ready.items()}
        serving[""] = all(serving.values())
        for service, is_serving in serving.items():
            if self._serving.get(service) != is_serving:
                self._serving[service] = is_serving
                _log.info("health_changed", name=service or "server", serving=is_serving)
                kind = health_pb2.HealthCheckResponse
                await self._servicer.set(service, kind.SERVING if is_serving else kind.NOT_SERVING)

    async def follow(self) -> None:
        """Refreshes until it is cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(FOLLOW_SECONDS)

    async def drain(self) -> None:
        """Reports NOT_SERVING to all watchers from now on."""
        await self._servicer.enter_graceful_shutdown()
