"""A scripted cloning server: a real gRPC server whose servicer answers as a test tells it.

For tests of what calls the cloning server: the gateway and the client.
"""

import contextlib
from collections.abc import AsyncIterator

from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from aivo.cloning.v1 import (
    cloning_service_pb2_grpc,
    student_model_pb2,
    student_model_service_pb2_grpc,
    student_service_pb2,
    student_service_pb2_grpc,
)
from aivo.cloning.v1 import student_model_service_pb2 as models_pb

from testing.scripted.script import BASE_MODEL, Context, Script
from testing.scripted.serving import new_server, serving

CLONING = "aivo.cloning.v1.CloningService"
CLONE_ID = "clone_abc123xyz"
STATES: tuple[str, ...] = (
    "queued",
    "loading_base_model",
    "creating_adapter",
    "fine_tuning",
    "optimizing",
    "saving",
    "deploying",
    "completed",
)


class ScriptedCloning(
    cloning_service_pb2_grpc.CloningServiceServicer,
    student_model_service_pb2_grpc.StudentModelServiceServicer,
    student_service_pb2_grpc.StudentServiceServicer,
):
    """Has one clone, which completes unless the script fails it. Joint watches follow as many as they ask for.

    Attributes:
        script: Its calls, and how they go wrong.
        status: Its health.
        states: The states of the clone, in order.
    """

    def __init__(self) -> None:
        self.script = Script()
        self.status = "healthy"
        self.states = STATES

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
        for sequence, status in enumerate(self.states, start=1):
            if sequence <= request.after_sequence:
                continue
            if error := self.script.late_error:
                yield cloning_pb.WatchCloneResponse(sequence=sequence, status="failed", error=error)
                return
            yield cloning_pb.WatchCloneResponse(
                sequence=sequence,
                clone_id=request.clone_id,
                status=status,
                progress=100 * sequence // len(self.states),
                message=f"step {sequence}",
                model=_model() if status == "completed" else None,
            )
            await self.script.wait_while_held()

    async def WatchClones(
        self, request: cloning_pb.WatchClonesRequest, context: Context
    ) -> AsyncIterator[cloning_pb.WatchClonesResponse]:
        await self.script.enter("WatchClones", request, context)
        clones = dict.fromkeys(request.clone_ids, "student123")
        clones |= {f"clone_of_{student_id}": student_id for student_id in request.student_ids}
        sequence = 0
        for number, status in enumerate(self.states, start=1):
            for clone_id, student_id in clones.items():
                sequence += 1
                if sequence <= request.after_sequence:
                    continue
                yield cloning_pb.WatchClonesResponse(
                    sequence=sequence,
                    clone_id=clone_id,
                    status=status,
                    progress=100 * number // len(self.states),
                    message=f"step {number}",
                    student_id=student_id,
                    clone_sequence=number,
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
            residues=[student_service_pb2.Residue(place=student_service_pb2.RESIDUE_PLACE_BRAINS)],
        )

    async def ExportStudent(
        self, request: student_service_pb2.ExportStudentRequest, context: Context
    ) -> student_service_pb2.ExportStudentResponse:
        await self.script.enter("ExportStudent", request, context)
        # Two pages.
        clone_id, token = ("clone_2", "") if request.page_token else (CLONE_ID, "second")
        export = student_service_pb2.ExportStudentResponse(student_id=request.student_id, next_page_token=token)
        export.clones.add().clone.clone_id = clone_id
        if not request.page_token:
            export.models.add(model=_model())
        return export

    async def GetHealth(self, request: cloning_pb.GetHealthRequest, context: Context) -> cloning_pb.GetHealthResponse:
        await self.script.enter("GetHealth", request, context)
        return cloning_pb.GetHealthResponse(status=self.status)


@contextlib.asynccontextmanager
async def serving_cloning(cloning: ScriptedCloning, *, port: int = 0) -> AsyncIterator[int]:
    """Serves the cloning server's services on loopback; yields the port."""
    server = new_server()
    cloning_service_pb2_grpc.add_CloningServiceServicer_to_server(cloning, server)
    student_model_service_pb2_grpc.add_StudentModelServiceServicer_to_server(cloning, server)
    student_service_pb2_grpc.add_StudentServiceServicer_to_server(cloning, server)
    async with serving(server, CLONING, port=port, healthy=True) as bound_port:
        yield bound_port


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
