"""Runs the brain: `python -m brain_server`."""

import asyncio
import sys

from brain_server.settings import BrainSettings
from mesh import log, process
from mesh.settings import InvalidSettings, load_settings

# The torch thread asks for the interpreter after each of some thousand operations a step, and by default waits for 5 ms
# whenever the event loop has it: a step of eight replies took 42 ms that takes 37.
_SWITCH_SECONDS = 0.0005


def main() -> int:
    """Returns the exit status: 0 after an orderly end, 2 for an environment that can't be used, 1 for a port taken."""
    try:
        settings = load_settings(BrainSettings)
    except InvalidSettings as error:
        sys.stderr.write(f"the environment can't be used:\n{error}\n")
        return 2
    sys.setswitchinterval(_SWITCH_SECONDS)
    process.keep_cores()
    process.silence_grpc_forks()
    log.configure(
        level=settings.log_level, form=settings.log_format, service="brain_server", packages=("brain_server", "mesh")
    )
    # Imported only now: torch and grpc read the environment when they are loaded, they take seconds that a wrong
    # setting should not wait for, and what they print while they are imported belongs in the log.
    from brain_server.app import run  # noqa: PLC0415

    try:
        asyncio.run(run(settings))
    except OSError as error:
        log.get_logger("brain_server").error("cannot_listen", why=str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
