"""Students who are deleted while their clones run and wait, and parts are struck."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import grpc
from aivo.cloning.v1.student_service_pb2 import DeleteStudentRequest
from aivo.cloning.v1.student_service_pb2_grpc import StudentServiceStub

from mesh.rpc.channels import open_channel
from testing.chaos.aivo import Aivo
from testing.chaos.brains import second_brain_of, until_answers, until_forgotten
from testing.chaos.crowd import PASSING, RETRY_SECONDS, CloneHistory, Crowd
from testing.parts.servers import RunningServer

if TYPE_CHECKING:
    from aivo.cloning.v1.student_service_pb2 import DeleteStudentResponse

CALL_SECONDS = 30.0
# From the beginning of the strike to the first call, at most.
MOMENT_SECONDS = 1.0


async def delete_students(
    aivo: Aivo,
    crowd: Crowd,
    *,
    student_ids: Sequence[str],
    strike: Callable[[], Awaitable[None]],
    chance: random.Random,
) -> None:
    """Deletes students who have a model, a clone that runs and one that waits, while a strike is under way.

    Returns once the clones have ended and all brains have forgotten the students. The crowd keeps the clones among
    those of deleted students.
    """
    async with second_brain_of(aivo) as second_brain, asyncio.TaskGroup() as following:
        brains = (aivo.brain, second_brain)
        await asyncio.gather(*(_enrol(crowd, student_id, brains, following) for student_id in student_ids))
        deletions = [_delete(aivo.cloning, student_id, chance) for student_id in student_ids]
        await asyncio.gather(strike(), *deletions)
        for brain in brains:
            for student_id in student_ids:
                await until_forgotten(brain, student_id)


async def _enrol(crowd: Crowd, student_id: str, brains: Sequence[RunningServer], following: asyncio.TaskGroup) -> None:
    """Returns once all brains hold a model of the student, one clone of theirs runs, and another waits behind it."""
    first = await crowd.start(student_id)
    crowd.deleted.append(first)
    await crowd.follow(first)
    for brain in brains:
        await until_answers(brain, student_id)
    # Trained on from the first, both would pass the gate.
    version = first.changes[-1].model.version
    running, waiting = [await crowd.start(student_id, base_version=version) for _ in range(2)]
    crowd.deleted += [running, waiting]
    for history in (running, waiting):
        following.create_task(crowd.follow(history))
    await _until_begun(running)


async def _until_begun(history: CloneHistory) -> None:
    while history.status in ("", "queued"):  # noqa: ASYNC110 - the crowd's events are for all clones alike
        await asyncio.sleep(RETRY_SECONDS)


async def _delete(servers: Sequence[RunningServer], student_id: str, chance: random.Random) -> None:
    """Asks any server, from a random moment on, until a receipt says that all is gone and every brain was told."""
    await asyncio.sleep(chance.uniform(0, MOMENT_SECONDS))
    while True:
        async with open_channel(chance.choice(servers).address) as channel:
            try:
                receipt = await StudentServiceStub(channel).DeleteStudent(
                    DeleteStudentRequest(student_id=student_id), timeout=CALL_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    raise
            else:
                if _is_complete(receipt):
                    return
        await asyncio.sleep(RETRY_SECONDS)


def _is_complete(receipt: "DeleteStudentResponse") -> bool:
    return receipt.brain.reached and receipt.brain.HasField("listening")
