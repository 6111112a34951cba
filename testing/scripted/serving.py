"""Serves scripted servicers on loopback, with health and reflection."""

import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

LARGEST_MESSAGE_BYTES = 16 * 1024 * 1024


def new_server() -> grpc.aio.Server:
    """Returns a server that takes messages as large as the real ones do."""
    return grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES)])


@contextlib.asynccontextmanager
async def serving(server: grpc.aio.Server, service: str, *, port: int, healthy: bool) -> AsyncIterator[int]:
    """Serves what was added to the server, for this service's name; yields the port."""
    checks = health.aio.HealthServicer()
    states = health_pb2.HealthCheckResponse.ServingStatus
    await checks.set(service, states.SERVING if healthy else states.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([service, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    bound_port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound_port
    finally:
        await server.stop(grace=0)
