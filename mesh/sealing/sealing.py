"""Seals texts: each with a data key of its own, which lies beside it, wrapped by a master key.

Whoever removes a sealed text removes its data key with it. Bytes of it that stay somewhere, such as in a store's file,
can't be read without the master key.
"""

import base64
import re
import secrets
from collections.abc import Awaitable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.errors import KeyServiceUnavailable
from mesh.sealing.master_keys import NONCE_BYTES, MasterKey, WrongKey

# Begins every sealed text.
_MARK = "sealed1:"
# Then, separated by colons: name of the master key, wrapped data key, nonce with ciphertext; both in base64.
_PARTS = re.compile(r"([A-Za-z0-9-]{1,64}):([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


class CannotOpen(Exception):
    """A sealed text can't be opened.

    Attributes:
        key: Name of the master key that it needs; empty if its bytes do not tell that either.
    """

    def __init__(self, why: str, *, key: str = "") -> None:
        super().__init__(why)
        self.key = key


class Sealing:
    """Seals with the first of its master keys, and opens with all of them.

    Args:
        keys: The master keys; without any, texts stay as they are.
    """

    def __init__(self, keys: Sequence[MasterKey] = ()) -> None:
        self._keys = {key.name: key for key in keys}
        self._first = keys[0] if keys else None
        self._problems: dict[str, str] = {}

    @property
    def seals(self) -> bool:
        """Whether there is a master key."""
        return self._first is not None

    @property
    def problems(self) -> tuple[str, ...]:
        """Which master keys could not be used when they were last needed, and why; asks nobody."""
        return tuple(self._problems.values())

    async def seal(self, text: bytes, *, context: str) -> bytes:
        """Encrypts a text with a new data key; returns ASCII.

        Args:
            text: The text.
            context: What it is about, such as a clone's id: it opens in no other.

        Raises:
            KeyServiceUnavailable: The master key's keeper does not answer.
        """
        if self._first is None:
            return text
        data_key, nonce = AESGCM.generate_key(256), secrets.token_bytes(NONCE_BYTES)
        wrapped = await self._use(self._first, self._first.wrap(data_key, context=context))
        ciphertext = AESGCM(data_key).encrypt(nonce, text, context.encode())
        parts = (self._first.name.encode(), *map(base64.b64encode, (wrapped, nonce + ciphertext)))
        return _MARK.encode() + b":".join(parts)

    async def open(self, sealed: str, *, context: str) -> bytes:
        """Decrypts what `seal` returned; a text that was stored while there was no master key is returned as it is.

        Raises:
            CannotOpen: No master key of these opens it, or its bytes are not what was sealed in this context.
            KeyServiceUnavailable: The master key's keeper does not answer.
        """
        if not sealed.startswith(_MARK):
            return sealed.encode()
        parts = _PARTS.fullmatch(sealed, len(_MARK))
        if parts is None:
            raise CannotOpen("its bytes were changed")
        name = parts[1]
        key = self._keys.get(name)
        if key is None:
            raise CannotOpen(f"this server lacks the master key {name}", key=name)
        try:
            wrapped, ciphertext = (base64.b64decode(part) for part in parts.groups()[1:])
            data_key = await self._use(key, key.unwrap(wrapped, context=context))
            return AESGCM(data_key).decrypt(ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:], context.encode())
        except WrongKey:
            raise CannotOpen(f"the master key {name} does not open it", key=name) from None
        except (InvalidTag, ValueError):
            raise CannotOpen("its bytes were changed", key=name) from None

    async def _use(self, key: MasterKey, call: Awaitable[bytes]) -> bytes:
        try:
            answer = await call
        except KeyServiceUnavailable as error:
            self._problems[key.name] = f"the master key {key.name} could not be used the last time: {error}"
            raise
        self._problems.pop(key.name, None)
        return answer
