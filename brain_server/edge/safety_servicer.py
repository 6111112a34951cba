"""SafetyService: parse, call, convert."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from aivo.safety.v1 import safety_service_pb2 as pb
from aivo.safety.v1.safety_service_pb2_grpc import SafetyServiceServicer

from brain_server.alerts.feed import AlertFeed
from brain_server.edge import alert_wire
from brain_server.safety.agent import SafetyAgent
from mesh.alerts.alert_store import AlertStore
from mesh.alerts.wire import alert_from
from mesh.errors import AlertStoreUnavailable
from mesh.rpc.calls import Context, deadline_of
from mesh.rpc.watch_places import WatchPlaces


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertParts:
    """What serves alerts: their store, and the feed of their changes."""

    store: AlertStore
    feed: AlertFeed


class SafetyServicer(SafetyServiceServicer):
    """Answers for the safety agent and the alerts; raises what they raise."""

    def __init__(self, agent: SafetyAgent, *, alerts: AlertParts | None, watch_places: WatchPlaces) -> None:
        """Takes the agent, what serves alerts (None if this brain keeps none), and the places of watches."""
        self._agent = agent
        self._alerts = alerts
        self._watch_places = watch_places

    async def CheckText(self, request: pb.CheckTextRequest, context: Context) -> pb.CheckTextResponse:
        """Checks a text."""
        query = alert_wire.text_to_check_from(request)
        deadline = deadline_of(context)
        verdict = await self._agent.screener.screen(query.spoken, query.kind, grade=query.grade, deadline=deadline)
        reply = self._agent.replies.pick(verdict, grade=query.grade) if verdict.is_blocked else ""
        return alert_wire.check_from(verdict, reply=reply)

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Context) -> pb.ListAlertsResponse:
        """Lists alerts."""
        query = alert_wire.query_from(request)
        alerts = await self._require_alerts().store.list_latest(
            student_id=query.student_id, below=query.below, limit=query.size + 1
        )
        return alert_wire.page_from(alerts, size=query.size)

    async def WatchAlerts(
        self, request: pb.WatchAlertsRequest, context: Context
    ) -> AsyncGenerator[pb.WatchAlertsResponse, None]:
        """Streams alerts."""
        after_sequence = request.after_sequence if request.HasField("after_sequence") else None
        feed = self._require_alerts().feed
        with self._watch_places.place():
            async with aclosing(feed.watch(after_sequence=after_sequence, student_id=request.student_id)) as events:
                async for event in events:
                    yield alert_wire.event_from(event)

    async def AcknowledgeAlert(
        self, request: pb.AcknowledgeAlertRequest, context: Context
    ) -> pb.AcknowledgeAlertResponse:
        """Acknowledges an alert."""
        store = self._require_alerts().store
        alert = await store.acknowledge(request.alert_id, acknowledged_by=request.acknowledged_by)
        return pb.AcknowledgeAlertResponse(alert=alert_from(alert))

    def _require_alerts(self) -> AlertParts:
        if self._alerts is None:
            raise AlertStoreUnavailable("this brain keeps no alerts: it has no REDIS_URL")
        return self._alerts
