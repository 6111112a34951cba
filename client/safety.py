"""A client of the brain's safety service.

    async with SafetyClient("127.0.0.1:50051") as safety:
        async for message in safety.watch(WatchAlertsRequest()):
            print(message.alert)

Takes and returns the messages of `aivo.safety.v1`; failed calls raise an `AivoError`.
"""

from collections.abc import AsyncGenerator

from aivo.safety.v1.safety_service_pb2 import (
    AcknowledgeAlertRequest,
    AcknowledgeAlertResponse,
    CheckTextRequest,
    CheckTextResponse,
    ListAlertsRequest,
    ListAlertsResponse,
    WatchAlertsRequest,
    WatchAlertsResponse,
)
from aivo.safety.v1.safety_service_pb2_grpc import SafetyServiceStub

from client.calls import Client, typed_errors


class SafetyClient(Client):
    """Checks texts, and reads alerts. Raises what every `Client` raises."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._stub = SafetyServiceStub(self._channel)

    async def check(self, request: CheckTextRequest) -> CheckTextResponse:
        """Returns what is thought of a text."""
        with typed_errors():
            return await self._stub.CheckText(request)

    async def list_alerts(self, request: ListAlertsRequest) -> ListAlertsResponse:
        """Returns a page of alerts, the latest change first."""
        with typed_errors():
            return await self._stub.ListAlerts(request)

    async def watch(self, request: WatchAlertsRequest) -> AsyncGenerator[WatchAlertsResponse, None]:
        """Yields alerts as they change, and heartbeats, without end."""
        call = self._stub.WatchAlerts(request)
        try:
            with typed_errors():
                async for message in call:
                    yield message
        finally:
            call.cancel()

    async def acknowledge(self, request: AcknowledgeAlertRequest) -> AcknowledgeAlertResponse:
        """Returns the alert after it was acknowledged."""
        with typed_errors():
            return await self._stub.AcknowledgeAlert(request)
