"""Cancelling a clone, wherever it is and whoever runs it.

A clone is cancelled first where its version would be committed, then where its state is kept: from the first step on it
can publish nothing, whoever wakes up late, and whoever dies between the two leaves a clone that its runner finds voided
and ends as cancelled. The one who runs it learns of it by losing its lease.
"""

from cloning_server.clone import Clone, CloneState
from cloning_server.clones.registry import Registry
from mesh.adapters.store import AdapterStore
from mesh.errors import CloneFinal


async def cancel(clone_id: str, *, registry: Registry, adapters: AdapterStore) -> Clone:
    """Returns the clone as it was cancelled, now or before.

    Raises:
        CloneNotFound: There is none with this id.
        CloneFinal: It has completed or failed, or has committed its version and will complete.
        AdapterStoreUnavailable: It may have run, and the store can't be told; it goes on.
    """
    clone = await registry.find(clone_id)
    # What has never run can't publish, so that this needs no store.
    if not clone.state.is_final and not await registry.cancel_unbegun(clone):
        if await adapters.void(clone_id) is not None:
            raise CloneFinal(clone_id=clone_id, state=CloneState.DEPLOYING)
        await registry.cancel(clone_id)
    clone = await registry.find(clone_id)
    if clone.state is not CloneState.CANCELLED:
        raise CloneFinal(clone_id=clone_id, state=clone.state)
    return clone
