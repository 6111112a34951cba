"""Which master keys a server seals with."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from mesh.sealing.kms import KmsMasterKey
from mesh.sealing.master_keys import MasterKey, parse_keys, read_keys
from mesh.sealing.sealing import Sealing
from mesh.settings import InvalidSettings, Settings


def _split(value: object) -> object:
    return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value


class SealingSettings(Settings):
    """Master keys, in the order of their use: KMS, the variable, the file. The first seals, all of them open."""

    # Keys of 64 hexadecimal digits, separated by commas.
    master_key: SecretStr | None = None
    # The same, one a line.
    master_key_file: Path | None = None
    master_key_kms: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(_split)] = ()
    kms_endpoint_url: str | None = Field(default=None, pattern=r"^https?://.+")

    @field_validator("master_key")
    @classmethod
    def _are_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None:
            parse_keys(_words(keys))
        return keys

    @property
    def has_master_key(self) -> bool:
        """Whether there is any; the file may still turn out to hold none."""
        return bool(self.master_key or self.master_key_file or self.master_key_kms)

    def without_master_keys(self) -> Self:
        """The same settings for a process that seals nothing."""
        return self.model_copy(update={"master_key": None, "master_key_file": None, "master_key_kms": ()})

    def sealing(self) -> Sealing:
        """What seals with these keys; reads the file.

        Raises:
            InvalidSettings: The file can't be read, or is not one of keys.
        """
        keys: list[MasterKey] = [KmsMasterKey(word, endpoint_url=self.kms_endpoint_url) for word in self.master_key_kms]
        keys += parse_keys(_words(self.master_key)) if self.master_key else []
        try:
            keys += read_keys(self.master_key_file) if self.master_key_file else []
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InvalidSettings(f"MASTER_KEY_FILE: {why}") from None
        return Sealing(keys)


def _words(keys: SecretStr) -> list[str]:
    return [word.strip() for word in keys.get_secret_value().split(",")]
