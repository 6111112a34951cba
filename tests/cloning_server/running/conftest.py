"""What the tests of running clones share."""

from aivo.cloning.v1 import cloning_service_pb2 as pb

from tests.cloning_server.conftest import STUDENT, CloningStub, start_clone, watch_all

# The statuses of a clone that completes, in order.
STATUSES = [
    "queued",
    "loading_base_model",
    "creating_adapter",
    "fine_tuning",
    "optimizing",
    "saving",
    "deploying",
    "completed",
]


async def run_clone(stub: CloningStub, student_id: str = STUDENT) -> str:
    """Runs a clone until it has completed; returns its id."""
    clone_id = await start_clone(stub, student_id)
    assert (await watch_all(stub, clone_id))[-1].status == "completed"
    return clone_id


def statuses_of(changes: list[pb.WatchCloneResponse]) -> list[str]:
    """The statuses of changes, without repetitions, in the order in which they first occur."""
    return list(dict.fromkeys(change.status for change in changes))
