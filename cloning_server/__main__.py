"""Runs the cloning server: `python -m cloning_server`."""

import asyncio
import os
import sys

from cloning_server.settings import CloningSettings
from mesh import log, process
from mesh.background import FAILED_STATUS, TaskFailed
from mesh.settings import InvalidSettings, load_settings


def main() -> int:
    """Runs the server and returns its exit status.

    0 after a drain, 1 if it can't listen, 2 for invalid settings, 3 if a background task kept crashing.
    """
    try:
        settings = load_settings(CloningSettings)
    except InvalidSettings as error:
        sys.stderr.write(f"invalid settings in the environment:\n{error}\n")
        return 2
    # Ray's processes inherit the environment, and none of them opens a baseline.
    os.environ.pop("MASTER_KEY", None)
    process.share_cores()
    process.silence_grpc_forks()
    log.configure(
        level=settings.log_level,
        form=settings.log_format,
        service="cloning_server",
        packages=("cloning_server", "mesh"),
    )
    # Imported only now: torch and grpc read the environment when they load; they take seconds, which a wrong setting
    # should not wait for; and what they print while they load belongs in the log.
    from cloning_server.app import run  # noqa: PLC0415

    try:
        asyncio.run(run(settings))
    except InvalidSettings as error:
        sys.stderr.write(f"invalid settings in the environment:\n{error}\n")
        return 2
    except OSError as error:
        log.get_logger("cloning_server").error("cannot_listen", why=str(error))
        return 1
    except TaskFailed:
        # It is in the log already.
        return FAILED_STATUS
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
