"""Cancels a clone in any state, on any server.

It takes two steps: void the clone in the adapter store, then write its final state. After the first step nobody can
publish a version of it, however late. If this server dies between the two, the runner finds the clone voided and ends
it as cancelled. The runner of a cancelled clone stops because it has lost its lease.
"""

from cloning_server.clone import Clone, CloneState
from cloning_server.clones.changes import CloneChanges
from mesh.adapters.store import AdapterStore
from mesh.errors import CloneCorrupt, CloneFinal


async def cancel(clone_id: str, *, changes: CloneChanges, adapters: AdapterStore) -> Clone:
    """Cancels a clone; returns it in its final state. A clone that was cancelled before stays as it is.

    Raises:
        CloneNotFound: No clone has this id.
        CloneFinal: The clone has completed or failed, or it has committed its version and will complete.
        AdapterStoreUnavailable: The clone may have run, so the adapter store is needed. The clone goes on.
    """
    try:
        clone = await changes.find(clone_id)
    except CloneCorrupt:
        # It ends as failed, and lets the student's next clone run.
        clone = await changes.cancel(clone_id)
    # A clone that has never run can't publish anything, so this needs no adapter store.
    if not clone.state.is_final and not await changes.cancel_unstarted(clone):
        if await adapters.void(clone_id) is not None:
            raise CloneFinal(clone_id=clone_id, state=CloneState.DEPLOYING)
        await changes.cancel(clone_id)
    clone = await changes.find(clone_id)
    if clone.state is not CloneState.CANCELLED:
        raise CloneFinal(clone_id=clone_id, state=clone.state)
    return clone
