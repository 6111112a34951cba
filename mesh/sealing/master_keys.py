"""Master keys: they wrap the data keys that lie beside what they seal. A master key lies in no store."""

import re
import secrets
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# The size that NIST SP 800-38D recommends for random nonces.
NONCE_BYTES = 12
_KEY = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)


class WrongKey(Exception):
    """The master key did not wrap this data key, or not for this context."""


class MasterKey(Protocol):
    """Wraps data keys.

    Attributes:
        name: By which a sealed text tells which master key opens it; tells nothing of the key. Letters, digits and `-`.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    async def wrap(self, data_key: bytes, *, context: str) -> bytes:
        """Encrypts a data key; the same context unwraps it.

        Raises:
            KeyServiceUnavailable: Whoever holds the master key does not answer, or refuses.
        """
        ...

    async def unwrap(self, wrapped: bytes, *, context: str) -> bytes:
        """Decrypts a data key.

        Raises:
            WrongKey: This master key did not wrap it, or for another context.
            KeyServiceUnavailable: Whoever holds the master key does not answer.
        """
        ...


class LocalMasterKey:
    """A master key in this process's memory: AES-256-GCM.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.name = f"local-{sha256(b'aivo master key' + key).hexdigest()[:16]}"

    async def wrap(self, data_key: bytes, *, context: str) -> bytes:
        """See `MasterKey.wrap`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data_key, context.encode())

    async def unwrap(self, wrapped: bytes, *, context: str) -> bytes:
        """See `MasterKey.unwrap`."""
        try:
            return self._cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context.encode())
        except (InvalidTag, ValueError):
            raise WrongKey from None


def parse_keys(words: Iterable[str]) -> list[LocalMasterKey]:
    """Returns the master keys that are spelled as 64 hexadecimal digits each.

    Raises:
        ValueError: One is not; the message does not quote it.
    """
    keys = []
    for number, word in enumerate(words, start=1):
        if not _KEY.fullmatch(word):
            raise ValueError(f"key {number} must be 64 hexadecimal digits, as `openssl rand -hex 32` writes them")
        keys.append(LocalMasterKey(bytes.fromhex(word)))
    return keys


def read_keys(file: Path) -> list[LocalMasterKey]:
    """Returns the master keys in a file, one a line.

    Raises:
        ValueError: It has none, or a line that is none.
        OSError: It can't be read.
    """
    keys = parse_keys(file.read_text("ascii", errors="replace").split())
    if not keys:
        raise ValueError("the file holds no key")
    return keys
