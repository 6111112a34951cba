"""Calls about students that the tests share."""

from aivo.cloning.v1 import student_model_service_pb2 as models_pb
from aivo.cloning.v1 import student_service_pb2 as student_pb

from tests.cloning_server.conftest import STUDENT, CloningStub, order, watch_all


async def clone(stub: CloningStub, student_id: str = STUDENT, *, base_version: int = 0, request_id: str = "") -> str:
    """Clones a student until the end."""
    request = order(student_id, request_id=request_id)
    if base_version:
        request.base_version = base_version
    clone_id = (await stub.StartClone(request)).clone_id
    assert (await watch_all(stub, clone_id))[-1].status == "completed"
    return clone_id


async def models_of(stub: CloningStub, student_id: str = STUDENT) -> models_pb.ListStudentModelsResponse:
    return await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=student_id))


async def delete(stub: CloningStub, student_id: str = STUDENT) -> student_pb.DeleteStudentResponse:
    return await stub.DeleteStudent(student_pb.DeleteStudentRequest(student_id=student_id))
