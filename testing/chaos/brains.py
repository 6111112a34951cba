"""Whether a brain answers with a student's model, and a second brain beside the first."""

import contextlib
import secrets
from collections.abc import AsyncIterator

import grpc
from aivo.brain.v1 import adapter_service_pb2 as adapter_pb
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub

from mesh.rpc.channels import open_channel
from testing.chaos.aivo import Aivo
from testing.parts.servers import RunningServer, brain_server
from testing.waiting import until

CALL_SECONDS = 10.0
# From the start of a brain, or the end of an outage, to its first reply; and from a deletion to its notice.
ANSWER_SECONDS = 120.0


@contextlib.asynccontextmanager
async def second_brain_of(aivo: Aivo) -> AsyncIterator[RunningServer]:
    """Runs one more brain on the same stores; it may not be ready yet."""
    folder = aivo.stack.folder / f"brain-{secrets.token_hex(4)}"
    async with brain_server(folder, env=aivo.stack.brain_env) as brain:
        yield brain


async def until_answers(brain: RunningServer, student_id: str) -> None:
    """Returns once the brain answers with the student's own model; raises `TimeoutError` if it does not."""
    async with open_channel(brain.address) as channel:
        stub = BrainServiceStub(channel)

        async def answers() -> bool:
            try:
                reply = await stub.Generate(request_of(student_id), timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError:
                return False
            return reply.adapter.student_id == student_id

        await until(answers, seconds=ANSWER_SECONDS)


async def until_forgotten(brain: RunningServer, student_id: str) -> None:
    """Returns once the brain knows no model of the student and holds none; raises `TimeoutError` if it goes on."""
    async with open_channel(brain.address) as channel:
        stub, adapters = BrainServiceStub(channel), AdapterServiceStub(channel)

        async def has_forgotten() -> bool:
            try:
                await stub.Generate(request_of(student_id), timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    return False
            else:
                return False
            listed = await adapters.ListAdapters(adapter_pb.ListAdaptersRequest())
            return all(held.adapter.student_id != student_id for held in listed.adapters)

        await until(has_forgotten, seconds=ANSWER_SECONDS)


def request_of(student_id: str) -> pb.GenerateRequest:
    """A question that only the student's own model may answer."""
    return pb.GenerateRequest(
        prompt="What do roots do?",
        context=pb.StudentContext(student_id=student_id),
        max_tokens=1,
        adapter_policy=pb.ADAPTER_POLICY_REQUIRE,
    )
