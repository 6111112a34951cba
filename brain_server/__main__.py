"""Runs the brain: `python -m brain_server`."""

import asyncio
import os
import sys

from brain_server.settings import BrainSettings
from mesh import log, settings

# The torch thread asks for the interpreter after each of some thousand operations a step, and by default waits for 5 ms
# whenever the event loop has it: a step of eight replies took 42 ms that takes 37.
_SWITCH_SECONDS = 0.0005
# How long a thread of torch spins for the next operation before it sleeps, about a millisecond: waking it takes as long
# as a small product does, a thousand times a step. A step of eight replies took 50 ms with `mesh.lm`'s short spin and
# 30 ms with this one, beside a training with a short one as well.
_SPINS = "300000"


def main() -> int:
    """Returns the exit status: 0 after an orderly end, 2 for an environment that can't be used, 1 for a port taken."""
    try:
        read = settings.load(BrainSettings)
    except settings.InvalidSettings as error:
        sys.stderr.write(f"the environment can't be used:\n{error}\n")
        return 2
    sys.setswitchinterval(_SWITCH_SECONDS)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    log.configure(level=read.log_level, form=read.log_format, service="brain_server")
    # Only now: torch and transformers take seconds, which a wrong setting should not wait for, and what they have to
    # say while they are imported belongs into the log.
    from brain_server.app import run  # noqa: PLC0415

    try:
        asyncio.run(run(read))
    except OSError as error:
        log.get_logger("brain_server").error("cannot_listen", why=str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
