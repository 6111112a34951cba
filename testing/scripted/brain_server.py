"""A scripted brain server: a real gRPC server whose servicer answers as a test tells it.

For tests of what calls the brain: the gateway and the client.
"""

import contextlib
from collections.abc import AsyncIterator

from aivo.brain.v1 import adapter_pb2, brain_service_pb2_grpc
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.safety.v1 import safety_service_pb2 as safety_pb
from aivo.safety.v1 import safety_service_pb2_grpc
from aivo.safety.v1.safety_pb2 import SAFETY_ACTION_SUPPORT, SAFETY_CATEGORY_SELF_HARM, CategoryProbability
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status

from testing.scripted.script import BASE_MODEL, Context, Script
from testing.scripted.serving import new_server, serving

BRAIN = "aivo.brain.v1.BrainService"
ALERT_ID = "alert_abc123xyz"
SELF_HARM = CategoryProbability(category=SAFETY_CATEGORY_SELF_HARM, probability=0.97)
PIECES = ("Plants ", "make ", "food.")


class ScriptedBrain(brain_service_pb2_grpc.BrainServiceServicer, safety_service_pb2_grpc.SafetyServiceServicer):
    """Replies that plants make food, with the student's adapter if there is a student; has one alert about ada.

    Attributes:
        script: Its calls, and how they go wrong.
        status: Its health.
        generate_fallback: Why `Generate` has no adapter; None if it has one.
        assess_fallback: Why `Assess` has none, likewise.
    """

    def __init__(self) -> None:
        self.script = Script()
        self.status = "healthy"
        self.generate_fallback: brain_pb.FallbackReason.ValueType | None = None
        self.assess_fallback: brain_pb.FallbackReason.ValueType | None = None

    async def Generate(self, request: brain_pb.GenerateRequest, context: Context) -> brain_pb.GenerateResponse:
        await self.script.enter("Generate", request, context)
        await self.script.wait_while_held()
        return brain_pb.GenerateResponse(
            response="".join(PIECES),
            model=BASE_MODEL,
            tokens_used=156,
            timestamp=Timestamp(seconds=1736937000),
            adapter=_adapter_for(request, self.generate_fallback),
            fallback=self.generate_fallback,
        )

    async def GenerateStream(
        self, request: brain_pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[brain_pb.GenerateStreamResponse]:
        await self.script.enter("GenerateStream", request, context)
        for sequence, piece in enumerate(PIECES, start=1):
            yield brain_pb.GenerateStreamResponse(sequence=sequence, text=piece)
            if error := self.script.late_error:
                finished = brain_pb.Finished(response=piece, error=error)
                yield brain_pb.GenerateStreamResponse(sequence=sequence + 1, finished=finished)
                await context.abort_with_status(rpc_status.to_status(error))
            await self.script.wait_while_held()
        finished = brain_pb.Finished(response="".join(PIECES), model=BASE_MODEL, adapter=_adapter_for(request, None))
        yield brain_pb.GenerateStreamResponse(sequence=len(PIECES) + 1, finished=finished)

    async def Assess(self, request: brain_pb.AssessRequest, context: Context) -> brain_pb.AssessResponse:
        await self.script.enter("Assess", request, context)
        return brain_pb.AssessResponse(
            correctness=85,
            understanding_level="good",
            feedback="Well done.",
            strengths=["Names the Sun."],
            model=BASE_MODEL,
            grader="arithmetic",
            adapter=_adapter_for(request, self.assess_fallback),
            fallback=self.assess_fallback,
        )

    async def GetHealth(self, request: brain_pb.GetHealthRequest, context: Context) -> brain_pb.GetHealthResponse:
        await self.script.enter("GetHealth", request, context)
        return brain_pb.GetHealthResponse(
            status=self.status, model_loaded=True, device="cpu", model_name=BASE_MODEL, dtype="bfloat16"
        )

    async def CheckText(self, request: safety_pb.CheckTextRequest, context: Context) -> safety_pb.CheckTextResponse:
        await self.script.enter("CheckText", request, context)
        return safety_pb.CheckTextResponse(
            action=SAFETY_ACTION_SUPPORT,
            categories=[SELF_HARM],
            alert=True,
            guard="rules",
            reply="I am glad you said it.",
        )

    async def ListAlerts(self, request: safety_pb.ListAlertsRequest, context: Context) -> safety_pb.ListAlertsResponse:
        await self.script.enter("ListAlerts", request, context)
        return safety_pb.ListAlertsResponse(alerts=[_alert(sequence=1)])

    async def WatchAlerts(
        self, request: safety_pb.WatchAlertsRequest, context: Context
    ) -> AsyncIterator[safety_pb.WatchAlertsResponse]:
        await self.script.enter("WatchAlerts", request, context)
        for sequence in range(request.after_sequence + 1, 4):
            yield safety_pb.WatchAlertsResponse(sequence=sequence, alert=_alert(sequence=sequence))
        yield safety_pb.WatchAlertsResponse(sequence=3, heartbeat=True)
        await self.script.wait_while_held()

    async def AcknowledgeAlert(
        self, request: safety_pb.AcknowledgeAlertRequest, context: Context
    ) -> safety_pb.AcknowledgeAlertResponse:
        await self.script.enter("AcknowledgeAlert", request, context)
        return safety_pb.AcknowledgeAlertResponse(alert=_alert(sequence=4, acknowledged_by=request.acknowledged_by))


@contextlib.asynccontextmanager
async def serving_brain(brain: ScriptedBrain, *, port: int = 0, healthy: bool = True) -> AsyncIterator[int]:
    """Serves the brain's services on loopback; yields the port."""
    server = new_server()
    brain_service_pb2_grpc.add_BrainServiceServicer_to_server(brain, server)
    safety_service_pb2_grpc.add_SafetyServiceServicer_to_server(brain, server)
    async with serving(server, BRAIN, port=port, healthy=healthy) as bound_port:
        yield bound_port


def _alert(*, sequence: int, acknowledged_by: str = "") -> safety_pb.SafetyAlert:
    return safety_pb.SafetyAlert(
        alert_id=ALERT_ID,
        sequence=sequence,
        student_id="ada",
        categories=[SELF_HARM],
        action=SAFETY_ACTION_SUPPORT,
        count=sequence,
        create_time=Timestamp(seconds=1736937000),
        update_time=Timestamp(seconds=1736937000 + sequence),
        acknowledge_time=Timestamp(seconds=1736937060) if acknowledged_by else None,
        acknowledged_by=acknowledged_by,
    )


def _adapter_for(
    request: brain_pb.GenerateRequest | brain_pb.GenerateStreamRequest | brain_pb.AssessRequest,
    fallback: brain_pb.FallbackReason.ValueType | None,
) -> adapter_pb2.Adapter | None:
    student_id = request.context.student_id
    is_for_base = (
        not isinstance(request, brain_pb.AssessRequest) and request.adapter_policy == brain_pb.ADAPTER_POLICY_BASE_ONLY
    )
    if not student_id or is_for_base or fallback is not None:
        return None
    return adapter_pb2.Adapter(student_id=student_id, version=1, sha256="ab" * 32)
