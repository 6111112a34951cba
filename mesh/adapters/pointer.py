"""The pointer: which version of a student's adapter is active, which are pinned, and which are being removed.

It is one document, so that a version cannot become active or pinned while it is being retired.
"""

from collections.abc import Set as AbstractSet
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mesh.adapters.manifest import Digest
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt, InvalidField

Versions = frozenset[Annotated[int, Field(ge=1)]]

_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ActiveAdapter:
    """The active version and the identity of its weights.

    Attributes:
        ref: The version.
        sha256: Digest of its weights, lower-case hex.
    """

    ref: AdapterRef
    sha256: Digest


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Pointer:
    """The state of a student's versions.

    Attributes:
        schema: Version of the document's format.
        active: The version that answers; None if no version is active.
        pinned: Versions that are kept whatever their age.
        retiring: Versions that are being removed; they cannot become active or pinned any more.
        nonce: A new random value with each move. An object's ETag may be the hash of its bytes, and a pointer that
            moved away and back must not look unmoved.
    """

    schema: Literal[1] = 1
    active: ActiveAdapter | None = None
    pinned: Versions = frozenset()
    retiring: Versions = frozenset()
    nonce: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether it names no version, which means the same as no pointer."""
        return self.active is None and not self.pinned and not self.retiring

    @property
    def protected(self) -> AbstractSet[int]:
        """The versions that cannot be retired."""
        return self.pinned if self.active is None else self.pinned | {self.active.ref.version}

    @classmethod
    def from_json(cls, data: bytes) -> "Pointer":
        """Parses strictly.

        Raises:
            AdapterCorrupt: The bytes are not a pointer of a known schema.
        """
        try:
            return _JSON.validate_json(data)
        except (ValidationError, InvalidField):
            raise AdapterCorrupt("the pointer to the active version does not parse") from None

    def to_json(self) -> bytes:
        """Returns the JSON that `from_json` reads."""
        return _JSON.dump_json(self, indent=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerMove:
    """One compare-and-swap of a pointer; both are equal if there was nothing to change.

    Attributes:
        before: The pointer that was replaced; an empty one if there was none.
        after: The pointer that replaced it; an empty one if it was removed.
    """

    before: Pointer
    after: Pointer


_JSON = TypeAdapter(Pointer)
