"""The digest of a base model: one sha256 over its weight files, remembered so that a start does not read them again.

The digest goes into every adapter's manifest, because an adapter fits the weights it was trained on and no others.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

# 1 MiB reads keep the hash, not the system calls, the cost; a larger buffer gains nothing.
_READ_BYTES = 1 << 20


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a folder, in name order; empty if there are none.

    `consolidated*.safetensors` are the same weights in another layout, which some repositories hold as well.
    """
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))


def digest_folder(folder: Path, memory: Path) -> str:
    """The digest of a folder's weight files, as 64 hex digits.

    The one file's sha256, or, of several, the sha256 over their digests and names in name order.

    Args:
        folder: Holds at least one weight file.
        memory: Where digests are remembered by path, size and time of change; made if missing. A memory that can't be
            written costs time at the next start and nothing else.
    """
    digests = [(_remembered_sha256(path, memory), path.name) for path in weight_files(folder)]
    if len(digests) == 1:
        return digests[0][0]
    return hashlib.sha256("".join(f"{digest} {name}\n" for digest, name in digests).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    # mkstemp makes files that only their owner reads.
    Path(name).chmod(0o644)
    Path(name).replace(path)


def _remembered_sha256(path: Path, memory: Path) -> str:
    real = path.resolve()
    facts = real.stat()
    stamp = f"{real}:{facts.st_size}:{facts.st_mtime_ns}"
    note = memory / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    try:
        remembered = json.loads(note.read_text())
        if remembered["stamp"] == stamp:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = sha256_of(real)
    with contextlib.suppress(OSError):
        write_atomically(note, json.dumps({"stamp": stamp, "sha256": digest}))
    return digest
