"""How the clone store is laid out in Valkey or Redis.

```
feed:{clone_id}       stream: entry `n-0` is the clone (JSON) as of its n-th change, and the number of the change among
                      those of all clones; the last entry is its current state
baseline:{clone_id}   string: the baseline, sealed with a key of its own, until the clone is final
request:{request_id}  hash: the clone that this request made, and the digest of the request
lane:{student_id}     list: the student's clones that are not final; the first may run, the second waits behind it
requests:{student_id} set: the request ids of the student's clones
clones, clones:{student_id}   sorted sets: clone ids by number, in the order of acceptance
open                  sorted set: clones that are not final, by place: the number less the head start
queued                sorted set: those of them that can be claimed now, by place
leases                sorted set: running clones by the time at which their lease expires, in milliseconds since 1970;
                      and delayed clones by the time from which they can be claimed
tokens                hash: the lease token of each running clone
sizes                 hash: the number of responses of each clone that is not final
students              sorted set: students by the time at which their latest clone was accepted
due                   hash: those of them who are idle for too long, and the time and the turn of housekeeping by which
                      each was marked; expires some time after the last turn
ended                 sorted set: final clones whose feeds are still whole, by the time at which they ended
counter, change_counter, lease_counter, pace  strings: the last clone number, the last number of a change, the last
                      lease token, the seconds per response
removals, rewritten_removals  strings: how often data of students was removed, and how many of these removals the
                      append-only file does not hold any more; see `file_rewriter`
erasure:{random id}   string: exists for a moment after an erasure, so that a repeated call answers as the first
housekeeping, file_rewrite    string: exists while a server has its turn at housekeeping, or at the file
write_check           string: written to find out whether Redis takes writes
```

All keys of a tenant share one hash tag, so that the scripts also run on a cluster.
"""

import math
from contextlib import AbstractAsyncContextManager

from mesh.errors import CloneStoreUnavailable
from mesh.valkey import connection

# Where the Lua scripts of the store are.
SCRIPTS = "cloning_server.clones.scripts"


class StoreKeys:
    """The keys of one tenant."""

    def __init__(self, tenant: str) -> None:
        self._prefix = f"{{aivo:{tenant}}}:"

    def __call__(self, name: str, owner_id: str = "") -> str:
        """Returns the key of this name, and of this clone, student or request if it belongs to one."""
        return f"{self._prefix}{name}:{owner_id}" if owner_id else f"{self._prefix}{name}"

    @property
    def channel(self) -> str:
        """The channel on which Redis publishes the id of every clone that changes."""
        return self("changes")


def answers_in_time() -> AbstractAsyncContextManager[None]:
    """Around a call of the store: raises `CloneStoreUnavailable` while Redis does not answer, or refuses for now."""
    return connection.answers_in_time(CloneStoreUnavailable, "clone store")


def milliseconds(seconds: float) -> int:
    """Returns whole milliseconds, rounded up, so that a short time never becomes zero."""
    return math.ceil(seconds * 1000)
