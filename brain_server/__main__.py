"""Runs the brain: `python -m brain_server`."""

import asyncio
import sys

from brain_server.settings import BrainSettings
from mesh import log, process
from mesh.background import FAILED_STATUS, TaskFailed
from mesh.settings import InvalidSettings, load_settings

# The torch thread takes the interpreter lock after each of about a thousand operations per step, and by default waits
# 5 ms for it whenever the event loop holds it: a step of eight replies took 42 ms instead of 37.
_SWITCH_SECONDS = 0.0005


def main() -> int:
    """Runs the server and returns its exit status.

    0 after a drain, 1 if it can't listen, 2 for invalid settings, 3 if a background task kept crashing.
    """
    try:
        settings = load_settings(BrainSettings)
    except InvalidSettings as error:
        sys.stderr.write(f"invalid settings in the environment:\n{error}\n")
        return 2
    sys.setswitchinterval(_SWITCH_SECONDS)
    process.keep_cores()
    process.silence_grpc_forks()
    log.configure(
        level=settings.log_level, form=settings.log_format, service="brain_server", packages=("brain_server", "mesh")
    )
    # Imported only now: torch and grpc read the environment on import, take seconds that an invalid setting should not
    # wait for, and print messages that belong in the log.
    from brain_server.app import run  # noqa: PLC0415

    try:
        asyncio.run(run(settings))
    except OSError as error:
        log.get_logger("brain_server").error("cannot_listen", why=str(error))
        return 1
    except TaskFailed:
        # It is in the log already.
        return FAILED_STATUS
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
