"""The pointer: which version of a student's adapter answers now."""

from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mesh.adapters.manifest import Digest
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt, InvalidField


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class ActiveAdapter:
    """The active version and the identity of its weights.

    Attributes:
        schema: Of this document.
        ref: The version.
        sha256: Of its weights, lower-case hex.
    """

    schema: Literal[1] = 1
    ref: AdapterRef
    sha256: Digest

    @classmethod
    def from_json(cls, data: bytes) -> "ActiveAdapter":
        """Parses strictly.

        Raises:
            AdapterCorrupt: It is not a pointer of a known schema.
        """
        try:
            return _JSON.validate_json(data)
        except (ValidationError, InvalidField):
            raise AdapterCorrupt("the pointer to the active version does not parse") from None

    def to_json(self) -> bytes:
        """The JSON that `from_json` reads."""
        return _JSON.dump_json(self, indent=2)


_JSON = TypeAdapter(ActiveAdapter)
