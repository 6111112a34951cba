"""Runs the brain: `python -m brain_server`."""

import asyncio
import sys

from brain_server.settings import BrainSettings
from mesh import log, settings

# The torch thread asks for the interpreter after each of some thousand operations a step, and by default waits for 5 ms
# whenever the event loop has it: a step of eight replies took 42 ms that takes 37.
_SWITCH_SECONDS = 0.0005


def main() -> int:
    """Returns the exit status: 0 after an orderly end, 2 for an environment that can't be used, 1 for a port taken."""
    try:
        read = settings.load(BrainSettings)
    except settings.InvalidSettings as error:
        sys.stderr.write(f"the environment can't be used:\n{error}\n")
        return 2
    sys.setswitchinterval(_SWITCH_SECONDS)
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
