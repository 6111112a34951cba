"""Runs the cloning server: `python -m cloning_server`."""

import asyncio
import sys

from cloning_server.settings import CloningSettings
from mesh import log, settings


def main() -> int:
    """Returns the exit status: 0 after an orderly end, 2 for an environment that can't be used, 1 for a port taken."""
    try:
        read = settings.load(CloningSettings)
    except settings.InvalidSettings as error:
        sys.stderr.write(f"the environment can't be used:\n{error}\n")
        return 2
    log.configure(level=read.log_level, form=read.log_format, service="cloning_server")
    # Only now: torch and Ray take seconds, which a wrong setting should not wait for, and what they have to say while
    # they are imported belongs into the log.
    from cloning_server.app import run  # noqa: PLC0415

    try:
        asyncio.run(run(read))
    except OSError as error:
        log.get_logger("cloning_server").error("cannot_listen", why=str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
