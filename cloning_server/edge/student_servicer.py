"""StudentModelService and StudentService: parse, call, convert."""

from aivo.cloning.v1 import student_model_service_pb2 as pb
from aivo.cloning.v1.student_model_service_pb2_grpc import StudentModelServiceServicer
from aivo.cloning.v1.student_service_pb2 import (
    DeleteStudentRequest,
    DeleteStudentResponse,
    ExportStudentRequest,
    ExportStudentResponse,
)
from aivo.cloning.v1.student_service_pb2_grpc import StudentServiceServicer

from cloning_server.edge import export_wire, student_wire
from cloning_server.students.erasure import Erasure
from cloning_server.students.export import Exporter
from cloning_server.training import Trainer
from mesh.adapters.store import AdapterStore
from mesh.errors import TrainerUnavailable
from mesh.paging import clamp_page_size
from mesh.rpc.calls import Context


class StudentModelServicer(StudentModelServiceServicer):
    """Answers for the adapter store; raises what it raises. The trainer tells which Main Brain runs."""

    def __init__(self, adapters: AdapterStore, *, trainer: Trainer) -> None:
        self._adapters = adapters
        self._trainer = trainer

    async def ListStudentModels(
        self, request: pb.ListStudentModelsRequest, context: Context
    ) -> pb.ListStudentModelsResponse:
        """Lists a student's versions."""
        query = student_wire.page_from(request)
        active = await self._adapters.resolve_active(query.student_id)
        return student_wire.models_from(
            query.student_id,
            await self._adapters.list_page(query.student_id, size=query.size, below=query.below),
            active_version=None if active is None else active.ref.version,
            pinned=await self._adapters.list_pinned(query.student_id),
            main_brain=self._trainer.facts.main_brain,
        )

    async def ListOutdatedStudents(
        self, request: pb.ListOutdatedStudentsRequest, context: Context
    ) -> pb.ListOutdatedStudentsResponse:
        """Lists who should be cloned again."""
        query = student_wire.outdated_query_from(request)
        facts = self._trainer.facts
        if not facts.main_brain:
            raise TrainerUnavailable(f"the Main Brain is not known: {facts.reason or 'no trainer is ready'}")
        page = await self._adapters.list_outdated(facts.main_brain, size=query.size, after=query.after)
        return student_wire.outdated_from(facts.main_brain, page)

    async def ActivateStudentModel(
        self, request: pb.ActivateStudentModelRequest, context: Context
    ) -> pb.ActivateStudentModelResponse:
        """Makes a version active."""
        return student_wire.activated_from(await self._adapters.activate(request.student_id, request.version))

    async def PinStudentModel(self, request: pb.PinStudentModelRequest, context: Context) -> pb.PinStudentModelResponse:
        """Pins a version."""
        await self._adapters.pin(request.student_id, request.version)
        return pb.PinStudentModelResponse(student_id=request.student_id, version=request.version)

    async def UnpinStudentModel(
        self, request: pb.UnpinStudentModelRequest, context: Context
    ) -> pb.UnpinStudentModelResponse:
        """Unpins a version."""
        await self._adapters.unpin(request.student_id, request.version)
        return pb.UnpinStudentModelResponse(student_id=request.student_id, version=request.version)


class StudentServicer(StudentServiceServicer):
    """Erases and exports students; raises as `Erasure` and `Exporter` do. The trainer knows which Main Brain runs."""

    def __init__(self, erasure: Erasure, *, exporter: Exporter, trainer: Trainer) -> None:
        self._erasure = erasure
        self._exporter = exporter
        self._trainer = trainer

    async def DeleteStudent(self, request: DeleteStudentRequest, context: Context) -> DeleteStudentResponse:
        """Erases a student."""
        return student_wire.receipt_from(await self._erasure.erase(request.student_id))

    async def ExportStudent(self, request: ExportStudentRequest, context: Context) -> ExportStudentResponse:
        """Returns all that is held of a student."""
        export = await self._exporter.export(
            request.student_id, size=clamp_page_size(request.page_size), token=request.page_token
        )
        return export_wire.export_from(export, main_brain=self._trainer.facts.main_brain)
