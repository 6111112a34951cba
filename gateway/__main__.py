"""Runs the gateway: writes Envoy's configuration and becomes Envoy.

`python -m gateway [FOLDER]` writes `FOLDER/envoy.yaml` (default `.aivo`), where Envoy makes the socket of its admin
interface, `FOLDER/admin.sock`. SIGTERM and SIGINT end it.
"""

import os
import sys
from pathlib import Path

from gateway.settings import GatewaySettings
from gateway.template import render
from mesh.settings import InvalidSettings, load_settings


def main() -> None:
    """Does not return: the process becomes Envoy, so that signals and the exit status are Envoy's own."""
    try:
        settings = load_settings(GatewaySettings)
    except InvalidSettings as error:
        sys.exit(f"the gateway's settings are wrong:\n{error}")
    # The program of the wheel, beside this interpreter whether or not its environment is activated.
    envoy = Path(sys.executable).with_name("envoy")
    if not envoy.exists():
        sys.exit(f"Envoy is not installed: {envoy} does not exist. Install it with: pip install 'aivo[stack]'")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".aivo")
    folder.mkdir(parents=True, exist_ok=True)
    # Sockets have short paths, folders may not: Envoy makes its socket in the working folder.
    os.chdir(folder)
    os.umask(0o077)
    config = Path("envoy.yaml")
    config.write_text(render(settings))
    # Hot restart would share memory by a number that is the same for every Envoy of the machine.
    options = ["--config-path", str(config), "--log-level", settings.envoy_log_level, "--disable-hot-restart"]
    os.execv(envoy, [str(envoy), *options])  # noqa: S606 -- no shell is wanted, and the arguments are ours


if __name__ == "__main__":
    main()
