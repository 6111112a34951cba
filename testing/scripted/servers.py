"""Both servers, scripted: real gRPC servers whose servicers answer as a test tells them.

For tests of what calls the servers: the gateway and the client.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
from aivo.brain.v1 import adapter_pb2, brain_service_pb2_grpc
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from aivo.cloning.v1 import (
    cloning_service_pb2_grpc,
    student_model_pb2,
    student_model_service_pb2_grpc,
    student_service_pb2,
    student_service_pb2_grpc,
)
from aivo.cloning.v1 import student_model_service_pb2 as models_pb
from aivo.safety.v1 import safety_service_pb2 as safety_pb
from aivo.safety.v1 import safety_service_pb2_grpc
from aivo.safety.v1.safety_pb2 import SAFETY_ACTION_SUPPORT, SAFETY_CATEGORY_SELF_HARM, CategoryProbability
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

BRAIN = "aivo.brain.v1.BrainService"
CLONING = "aivo.cloning.v1.CloningService"

BASE_MODEL = "SmolLM2-135M-Instruct"
CLONE_ID = "clone_abc123xyz"
ALERT_ID = "alert_abc123xyz"
SELF_HARM = CategoryProbability(category=SAFETY_CATEGORY_SELF_HARM, probability=0.97)
PIECES = ("Plants ", "make ", "food.")
STATES = (
    "queued",
    "loading_base_model",
    "creating_adapter",
    "fine_tuning",
    "optimizing",
    "saving",
    "deploying",
    "completed",
)
LARGEST_MESSAGE_BYTES = 16 * 1024 * 1024

Context = grpc.aio.ServicerContext[Message, Message]


def failure(code: grpc.StatusCode, reason: str, **facts: str) -> status_pb2.Status:
    """An error as the servers send it."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="aivo", metadata=facts))
    return status_pb2.Status(code=code.value[0], message=f"it failed with {reason}", details=[detail])


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that reached the server. `seconds_left` is the time to its deadline; None without one."""

    rpc: str
    request: Message
    metadata: dict[str, str | bytes]
    seconds_left: float | None


class Script:
    """The calls of a servicer, and how they go wrong.

    Attributes:
        calls: All calls, in order.
        failures: Each call removes the first, if there is one, and fails with it.
        late_error: A stream fails with it after its first message; None for no failure.
        hold: Calls wait until it is set: unary ones before the answer, streams before each message but the first.
        cancelled: Is set when a call is cancelled while it waits.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.failures: deque[status_pb2.Status] = deque()
        self.late_error: status_pb2.Status | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = asyncio.Event()

    async def enter(self, rpc: str, request: Message, context: Context) -> None:
        """Records the call; fails it if the script says so."""
        seconds_left = context.time_remaining()
        metadata = dict(context.invocation_metadata() or ())
        self.calls.append(Call(rpc=rpc, request=request, metadata=metadata, seconds_left=seconds_left))
        if self.failures:
            await context.abort_with_status(rpc_status.to_status(self.failures.popleft()))

    async def wait_while_held(self) -> None:
        """Waits until the test releases the calls."""
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class ScriptedBrain(brain_service_pb2_grpc.BrainServiceServicer, safety_service_pb2_grpc.SafetyServiceServicer):
    """Replies that plants make food, with the student's adapter if there is a student; has one alert about ada."""

    def __init__(self) -> None:
        self.script = Script()

    async def Generate(self, request: brain_pb.GenerateRequest, context: Context) -> brain_pb.GenerateResponse:
        await self.script.enter("Generate", request, context)
        await self.script.wait_while_held()
        return brain_pb.GenerateResponse(
            response="".join(PIECES),
            model=BASE_MODEL,
            tokens_used=156,
            timestamp=Timestamp(seconds=1736937000),
            adapter=_adapter(request.context.student_id),
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
        finished = brain_pb.Finished(
            response="".join(PIECES), model=BASE_MODEL, adapter=_adapter(request.context.student_id)
        )
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
            adapter=_adapter(request.context.student_id),
        )

    async def GetHealth(self, request: brain_pb.GetHealthRequest, context: Context) -> brain_pb.GetHealthResponse:
        await self.script.enter("GetHealth", request, context)
        return brain_pb.GetHealthResponse(
            status="healthy", model_loaded=True, device="cpu", model_name=BASE_MODEL, dtype="bfloat16"
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


class ScriptedCloning(
    cloning_service_pb2_grpc.CloningServiceServicer,
    student_model_service_pb2_grpc.StudentModelServiceServicer,
    student_service_pb2_grpc.StudentServiceServicer,
):
    """Has one clone, which completes unless the script fails it."""

    def __init__(self) -> None:
        self.script = Script()

    async def StartClone(
        self, request: cloning_pb.StartCloneRequest, context: Context
    ) -> cloning_pb.StartCloneResponse:
        await self.script.enter("StartClone", request, context)
        return cloning_pb.StartCloneResponse(
            clone_id=CLONE_ID,
            student_id=request.student_id,
            status="cloning_started",
            estimated_time_seconds=45,
            state=cloning_pb.CLONE_STATE_QUEUED,
        )

    async def GetClone(self, request: cloning_pb.GetCloneRequest, context: Context) -> cloning_pb.GetCloneResponse:
        await self.script.enter("GetClone", request, context)
        return cloning_pb.GetCloneResponse(
            clone_id=request.clone_id, student_id="student123", status="fine_tuning", progress=55, sequence=4, attempt=1
        )

    async def WatchClone(
        self, request: cloning_pb.WatchCloneRequest, context: Context
    ) -> AsyncIterator[cloning_pb.WatchCloneResponse]:
        await self.script.enter("WatchClone", request, context)
        for sequence, status in enumerate(STATES, start=1):
            if sequence <= request.after_sequence:
                continue
            if error := self.script.late_error:
                yield cloning_pb.WatchCloneResponse(sequence=sequence, status="failed", error=error)
                return
            yield cloning_pb.WatchCloneResponse(
                sequence=sequence,
                clone_id=request.clone_id,
                status=status,
                progress=100 * sequence // len(STATES),
                message=f"step {sequence}",
                model=_model() if status == "completed" else None,
            )
            await self.script.wait_while_held()

    async def CancelClone(
        self, request: cloning_pb.CancelCloneRequest, context: Context
    ) -> cloning_pb.CancelCloneResponse:
        await self.script.enter("CancelClone", request, context)
        return cloning_pb.CancelCloneResponse(clone_id=request.clone_id, student_id="student123", status="cancelled")

    async def ListClones(
        self, request: cloning_pb.ListClonesRequest, context: Context
    ) -> cloning_pb.ListClonesResponse:
        await self.script.enter("ListClones", request, context)
        summary = cloning_pb.CloneSummary(clone_id=CLONE_ID, student_id="student123", status="completed", progress=100)
        return cloning_pb.ListClonesResponse(clones=[summary])

    async def ListStudentModels(
        self, request: models_pb.ListStudentModelsRequest, context: Context
    ) -> models_pb.ListStudentModelsResponse:
        await self.script.enter("ListStudentModels", request, context)
        return models_pb.ListStudentModelsResponse(student_id=request.student_id, active_version=1, models=[_model()])

    async def ListOutdatedStudents(
        self, request: models_pb.ListOutdatedStudentsRequest, context: Context
    ) -> models_pb.ListOutdatedStudentsResponse:
        await self.script.enter("ListOutdatedStudents", request, context)
        # Two pages.
        student_id, token = ("student456", "") if request.page_token else ("student123", "second")
        student = models_pb.OutdatedStudent(student_id=student_id, version=1, base_digest="e" * 64, base_model="small")
        return models_pb.ListOutdatedStudentsResponse(main_brain="d" * 64, students=[student], next_page_token=token)

    async def ActivateStudentModel(
        self, request: models_pb.ActivateStudentModelRequest, context: Context
    ) -> models_pb.ActivateStudentModelResponse:
        await self.script.enter("ActivateStudentModel", request, context)
        return models_pb.ActivateStudentModelResponse(
            student_id=request.student_id, active_version=request.version, previous_version=2
        )

    async def PinStudentModel(
        self, request: models_pb.PinStudentModelRequest, context: Context
    ) -> models_pb.PinStudentModelResponse:
        await self.script.enter("PinStudentModel", request, context)
        return models_pb.PinStudentModelResponse(student_id=request.student_id, version=request.version)

    async def UnpinStudentModel(
        self, request: models_pb.UnpinStudentModelRequest, context: Context
    ) -> models_pb.UnpinStudentModelResponse:
        await self.script.enter("UnpinStudentModel", request, context)
        return models_pb.UnpinStudentModelResponse(student_id=request.student_id, version=request.version)

    async def DeleteStudent(
        self, request: student_service_pb2.DeleteStudentRequest, context: Context
    ) -> student_service_pb2.DeleteStudentResponse:
        await self.script.enter("DeleteStudent", request, context)
        return student_service_pb2.DeleteStudentResponse(
            student_id=request.student_id,
            clones=student_service_pb2.ErasedClones(clones=3, cancelled=1),
            models=student_service_pb2.ErasedModels(versions=2, objects=5, bytes=7_000),
            brain=student_service_pb2.EvictedAdapters(reached=False),
        )

    async def GetHealth(self, request: cloning_pb.GetHealthRequest, context: Context) -> cloning_pb.GetHealthResponse:
        await self.script.enter("GetHealth", request, context)
        return cloning_pb.GetHealthResponse(status="healthy")


@contextlib.asynccontextmanager
async def serving_brain(brain: ScriptedBrain, *, port: int = 0, healthy: bool = True) -> AsyncIterator[int]:
    """Serves the brain's services on loopback; yields the port."""
    server = _server()
    brain_service_pb2_grpc.add_BrainServiceServicer_to_server(brain, server)
    safety_service_pb2_grpc.add_SafetyServiceServicer_to_server(brain, server)
    async with _serving(server, BRAIN, port=port, healthy=healthy) as bound_port:
        yield bound_port


@contextlib.asynccontextmanager
async def serving_cloning(cloning: ScriptedCloning, *, port: int = 0) -> AsyncIterator[int]:
    """Serves the cloning server's services on loopback; yields the port."""
    server = _server()
    cloning_service_pb2_grpc.add_CloningServiceServicer_to_server(cloning, server)
    student_model_service_pb2_grpc.add_StudentModelServiceServicer_to_server(cloning, server)
    student_service_pb2_grpc.add_StudentServiceServicer_to_server(cloning, server)
    async with _serving(server, CLONING, port=port, healthy=True) as bound_port:
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


def _server() -> grpc.aio.Server:
    return grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES)])


@contextlib.asynccontextmanager
async def _serving(server: grpc.aio.Server, service: str, *, port: int, healthy: bool) -> AsyncIterator[int]:
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


def _adapter(student_id: str) -> adapter_pb2.Adapter | None:
    return adapter_pb2.Adapter(student_id=student_id, version=1, sha256="ab" * 32) if student_id else None


def _model() -> student_model_pb2.StudentModel:
    return student_model_pb2.StudentModel(
        version=1,
        active=True,
        sha256="ab" * 32,
        base_model=BASE_MODEL,
        examples=student_model_pb2.ExampleCounts(responses=24, train=20, heldout=4),
        metrics=student_model_pb2.TrainingMetrics(heldout_loss_base=2.5, heldout_loss_adapter=1.5),
        policy=student_model_pb2.TeachingPolicy(
            writing=student_model_pb2.WritingPolicy(
                level=student_model_pb2.WRITING_LEVEL_BELOW, sentence="Writes short answers for grade 4."
            ),
            interests=student_model_pb2.InterestPolicy(interests=["cats"], sentence="Is interested in cats."),
        ),
    )


def info(reason: str) -> dict[str, str]:
    """The `ErrorInfo` that every error has, as JSON."""
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "aivo"}
