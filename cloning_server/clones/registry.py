"""The registry: everything that can be done with a tenant's clones, one object per purpose."""

from dataclasses import dataclass
from typing import Self

from cloning_server.clones.changes import CloneChanges
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.intake import ORDER_BYTES, Intake
from cloning_server.clones.leases import Leases
from cloning_server.clones.listing import CloneListing
from mesh.sealing.sealing import Sealing


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """One tenant's clones.

    Attributes:
        intake: Accepts them.
        changes: Reads and writes them.
        listing: Lists and counts them.
        leases: Leases them to servers.
    """

    intake: Intake
    changes: CloneChanges
    listing: CloneListing
    leases: Leases

    @classmethod
    def of(
        cls,
        store: CloneStore,
        *,
        sealing: Sealing,
        queue_limit: int = 64,
        parallel: int = 1,
        require_consent: bool = False,
        order_bytes: int = ORDER_BYTES,
    ) -> Self:
        """The registry of the clones in a store; see `Intake` for the arguments."""
        return cls(
            intake=Intake(
                store,
                sealing=sealing,
                queue_limit=queue_limit,
                parallel=parallel,
                require_consent=require_consent,
                order_bytes=order_bytes,
            ),
            changes=CloneChanges(store),
            listing=CloneListing(store, parallel=parallel),
            leases=Leases(store, sealing=sealing),
        )
