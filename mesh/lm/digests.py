"""The digest of a base model: one sha256 over its weight files, cached so that a restart does not read them again.

Every adapter's manifest holds the digest, because an adapter fits only the weights it was trained on.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

# With 1 MiB reads the hash takes the time, not the system calls; a larger buffer gains nothing.
_READ_BYTES = 1 << 20


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that transformers loads from a folder, in name order.

    Leaves out `consolidated*.safetensors`: some repositories hold the same weights again in that layout.
    """
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))


def digest_folder(folder: Path, cache_dir: Path) -> str:
    """Returns the digest of a folder's weight files, as 64 hex digits.

    The sha256 of a single file; of several, the sha256 over their digests and names in name order.

    Args:
        folder: Holds at least one weight file.
        cache_dir: Keeps digests by path, size and time of change; created if missing. If it can't be written, the next
            start reads the files again.
    """
    digests = [(_cached_sha256(path, cache_dir), path.name) for path in weight_files(folder)]
    if len(digests) == 1:
        return digests[0][0]
    return hashlib.sha256("".join(f"{digest} {name}\n" for digest, name in digests).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file; a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    # mkstemp creates files that only their owner may read.
    Path(name).chmod(0o644)
    Path(name).replace(path)


def _cached_sha256(path: Path, cache_dir: Path) -> str:
    real_path = path.resolve()
    status = real_path.stat()
    stamp = f"{real_path}:{status.st_size}:{status.st_mtime_ns}"
    record_path = cache_dir / f"{hashlib.sha256(str(real_path).encode()).hexdigest()[:32]}.json"
    try:
        record = json.loads(record_path.read_text())
        if record["stamp"] == stamp:
            return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = sha256_of(real_path)
    with contextlib.suppress(OSError):
        write_atomically(record_path, json.dumps({"stamp": stamp, "sha256": digest}))
    return digest
