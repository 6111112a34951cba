"""Makes a Main Brain ready on this machine, from the command line.

`python -m mesh.main_brain.weights [NAME]` fetches the named base model, or that of the settings, and merges its tutor
into it. With `--path` it prints the folder and nothing else on standard output, for another program's command line:
`vllm serve "$(python -m mesh.main_brain.weights --path)"`.
"""

import argparse

from rich.console import Console

from mesh import log
from mesh.errors import BaseModelUnavailable
from mesh.main_brain.files import MainBrainFiles, fetch_main_brain
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings, load_settings


def main() -> int:
    """Returns 0 on success, else 1."""
    settings = load_settings(BaseModelSettings)
    parser = argparse.ArgumentParser(
        prog="python -m mesh.main_brain.weights", description="Fetches a base model and merges its tutor into it, once."
    )
    parser.add_argument("name", nargs="?", default=settings.base_model, help=f"default: {settings.base_model}")
    parser.add_argument("--path", action="store_true", help="print the folder, alone, on standard output")
    args = parser.parse_args()
    # To standard error, so that standard output holds the folder alone.
    log.configure(level="warning", form="console", service="weights", packages=("mesh",))
    console = Console(stderr=True)
    try:
        files = fetch_main_brain(
            args.name, settings.model_cache_dir, roles_folders(settings.roles_dir), console=console
        )
    except BaseModelUnavailable as error:
        console.print(f"base model unavailable: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    console.print(_summary(files), markup=False, highlight=False, soft_wrap=True)
    if args.path:
        Console().print(files.path.resolve(), markup=False, highlight=False, soft_wrap=True)
    return 0


def _summary(files: MainBrainFiles) -> str:
    if files.tutor is None:
        return f"{files.name} is in {files.path} (sha256 {files.digest[:12]})"
    digests = f"Main Brain {files.digest[:12]}, base model sha256 {files.base_weights_digest[:12]}"
    return f"{files.name} with its tutor is in {files.path} ({digests})"


if __name__ == "__main__":
    raise SystemExit(main())
