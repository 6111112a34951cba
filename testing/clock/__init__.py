"""A wall clock that tests set: Python in a process with `ENV` adds to the time of day what a file in its folder says.

`datetime.now`, `utcnow` and `today` follow the file; `time.monotonic` does not, as on a machine whose clock is set.
`time.time` does not either: gRPC passes it to its core, which has the machine's own clock, and all deadlines would be
wrong. The servers ask `datetime` for the time of day.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_OFFSET_FILE = "clock-offset"
_FOLDERS = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
# Python imports `sitecustomize` from these folders as it starts.
ENV = {"PYTHONPATH": os.pathsep.join(filter(None, _FOLDERS)), "CLOCK_OFFSET_FILE": _OFFSET_FILE}


@contextlib.contextmanager
def shifted_clock(folder: Path, seconds: float) -> Iterator[None]:
    """Shifts the clock of the processes that were started in this folder."""
    file = folder / _OFFSET_FILE
    file.write_text(str(seconds))
    try:
        yield
    finally:
        file.unlink()
