"""Runs the `Procfile` with credentials of its own: `python -m gateway.local_stack FOLDER [PART …]`.

The first start draws the credentials and writes them to `FOLDER/credentials.env`, which only this user can read, as all
files that the parts write. They are never printed, and no command line holds them: command lines are public.
"""

import os
import secrets
import stat
import sys
from pathlib import Path

import honcho.command
import honcho.manager

# Valkey's password, the S3 key, the key that seals baselines in Valkey, and the keys by which SeaweedFS's parts know
# each other's requests for objects.
CREDENTIALS = ("VALKEY_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MASTER_KEY", "WEED_JWT_SIGNING_KEY",
               "WEED_JWT_SIGNING_READ_KEY", "WEED_JWT_FILER_SIGNING_KEY",
               "WEED_JWT_FILER_SIGNING_READ_KEY")  # fmt: skip
# Ray takes 4 s to stop after Ctrl-C; by default honcho kills after 5.
_KILL_SECONDS = 15


def main() -> None:
    """Runs the parts until one of them ends or a signal comes."""
    folder = Path(sys.argv[1])
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True)
    # The folder's own mode stays: it may hold more than this stack's data.
    if folder.stat().st_mode & stat.S_IWOTH:
        sys.exit(f"DATA: every user may write to {folder}; set DATA to a folder of your own")
    for place in (folder / "valkey", folder / "s3"):
        place.mkdir(exist_ok=True)
        place.chmod(0o700)
    credentials = stored_credentials(folder / "credentials.env")
    _write(folder / "valkey.conf", f"requirepass {credentials['VALKEY_PASSWORD']}\n")
    # In a file that the cloning server alone reads: every part gets the environment.
    keys = [*os.environ.pop("MASTER_KEY", "").split(","), credentials.pop("MASTER_KEY")]
    _write(folder / "master-keys", "".join(f"{key}\n" for key in keys if key))
    redis_url = f"redis://:{credentials['VALKEY_PASSWORD']}@127.0.0.1:{os.environ['REDIS_PORT']}/0"
    key_file = str((folder / "master-keys").resolve())
    for name, value in {**credentials, "REDIS_URL": redis_url, "MASTER_KEY_FILE": key_file}.items():
        # As everywhere, an empty variable counts as unset.
        os.environ[name] = os.environ.get(name) or value
    honcho.manager.KILL_WAIT = _KILL_SECONDS
    honcho.command.main(["start", *sys.argv[2:]])


def stored_credentials(file: Path) -> dict[str, str]:
    """Returns the credentials in the file, lines of `NAME=value`; draws those that it lacks and adds them."""
    lines = file.read_text().splitlines() if file.exists() else []
    stored = dict(line.split("=", 1) for line in lines if "=" in line)
    credentials = {name: stored.get(name) or secrets.token_hex(32) for name in CREDENTIALS}
    # Lines of others stay: who loads the file may keep more in it.
    complete = stored | credentials
    if complete != stored:
        _write(file, "".join(f"{name}={value}\n" for name, value in complete.items()))
    return credentials


def _write(file: Path, text: str) -> None:
    """Writes a file that only this user can read, whole or not at all."""
    draft = file.with_name(f"{file.name}.draft")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(file)


if __name__ == "__main__":
    main()
