"""Names of stored adapters: a student, a version, and the keys that follow from them.

```
{tenant}/{student_id}/v{version}/adapter_model.safetensors   the weights, immutable
                                 adapter_config.json         PEFT's description of them, immutable
                                 manifest.json               the manifest, immutable; written after the other two
{tenant}/{student_id}/active.json                            the pointer, changed by compare-and-swap
{tenant}/_commits/{clone_id}.json                            the clone's commit: the same manifest, or a void document
```

So PEFT and vLLM load the folder of a version. Versions of AIVO 0.1.0 have no description, and their weights are in
`adapter.safetensors` (`AdapterRef.bare_weights_key`).

Ids are validated before they become part of a key, so no id can reach another student's keys. No id begins with an
underscore, so the folder of the commits is no student's.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from mesh.adapters.peft_config import CONFIG_FILE, WEIGHTS_FILE
from mesh.errors import InvalidField, Violation

DEFAULT_TENANT = "default"

# Python's `$` also matches before a final newline, so match with `fullmatch`, as `is_student_id` does. Two dots in a
# row have no use in an id, and every path traversal needs them.
STUDENT_ID_PATTERN = r"^(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_COMMITS_FOLDER = "_commits"

_ID = re.compile(STUDENT_ID_PATTERN)
_VERSION_FOLDER = re.compile(r"v([1-9][0-9]{0,8})")


def is_student_id(value: str) -> bool:
    """Whether the value matches `STUDENT_ID_PATTERN`."""
    return _ID.fullmatch(value) is not None


def is_tenant_folder(name: str) -> bool:
    """Whether a folder of a tenant can have this name: a student's id, or the name of the folder of the commits."""
    return is_student_id(name) or name == _COMMITS_FOLDER


def validate_student_id(value: str, *, field: str = "student_id") -> str:
    """Returns the id unchanged; clone ids and tenants follow the same pattern.

    Args:
        value: The id as the caller sent it.
        field: Path of the field in the request, for the violation.

    Raises:
        InvalidField: The id does not match `STUDENT_ID_PATTERN`. The message does not repeat the id.
    """
    if is_student_id(value):
        return value
    accepted = "must be 1 to 64 letters, digits, dots, dashes or underscores, start with a letter or digit"
    raise InvalidField([Violation(field, f"{accepted} and hold no two dots in a row")])


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantKeys:
    """The keys of one tenant.

    Raises:
        InvalidField: The tenant is malformed.
    """

    tenant: str = DEFAULT_TENANT

    def __post_init__(self) -> None:
        validate_student_id(self.tenant, field="tenant")

    @property
    def prefix(self) -> str:
        """Prefix of all keys of this tenant, with the final slash."""
        return f"{self.tenant}/"

    @property
    def commits(self) -> str:
        """Prefix of the keys of all commits, with the final slash."""
        return f"{self.prefix}{_COMMITS_FOLDER}/"

    def commit(self, clone_id: str) -> str:
        """Returns the key of the clone's commit.

        Raises:
            InvalidField: The clone id is malformed.
        """
        return f"{self.commits}{validate_student_id(clone_id, field='clone_id')}.json"

    def student_in(self, key: str) -> str | None:
        """Returns the student in whose folder this key is, or None for any other key."""
        student_id, slash, _ = key.removeprefix(self.prefix).partition("/")
        return student_id if slash and is_student_id(student_id) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentKeys:
    """The keys of one student's adapters.

    Raises:
        InvalidField: The tenant or the student id is malformed.
    """

    student_id: str
    tenant: str = DEFAULT_TENANT

    def __post_init__(self) -> None:
        validate_student_id(self.tenant, field="tenant")
        validate_student_id(self.student_id)

    @property
    def prefix(self) -> str:
        """Prefix of all keys of this student, with the final slash."""
        return f"{self.tenant}/{self.student_id}/"

    @property
    def active(self) -> str:
        """Key of the pointer to the active version."""
        return f"{self.prefix}active.json"

    def version_in(self, key: str) -> int | None:
        """Returns the version to which a key of this student belongs, or None for the pointer."""
        match = _VERSION_FOLDER.fullmatch(key.removeprefix(self.prefix).partition("/")[0])
        return int(match[1]) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """One version of one student's adapter.

    Attributes:
        student_id: The student; matches `STUDENT_ID_PATTERN`.
        version: 1 or more. Numbers grow and may have gaps.
        tenant: The school or district that owns the student.

    Raises:
        InvalidField: An id is malformed or the version is below 1.
    """

    student_id: str
    version: int
    tenant: str = DEFAULT_TENANT

    def __post_init__(self) -> None:
        validate_student_id(self.tenant, field="tenant")
        validate_student_id(self.student_id)
        if self.version < 1:
            raise InvalidField([Violation("version", "must be 1 or more")])

    @property
    def weights_key(self) -> str:
        """Key of the weights, in PEFT's layout."""
        return f"{self}/{WEIGHTS_FILE}"

    @property
    def bare_weights_key(self) -> str:
        """Key of the weights of a version of AIVO 0.1.0, whose folder PEFT can't load."""
        return f"{self}/adapter.safetensors"

    @property
    def config_key(self) -> str:
        """Key of PEFT's description of the weights."""
        return f"{self}/{CONFIG_FILE}"

    @property
    def manifest_key(self) -> str:
        """Key of the manifest; a version exists once this key does."""
        return f"{self}/manifest.json"

    def has_weights(self, present: Collection[str]) -> bool:
        """Whether the weights of this version are among the present keys, under either name."""
        return self.weights_key in present or self.bare_weights_key in present

    def is_complete(self, present: Collection[str]) -> bool:
        """Whether weights and manifest are among the present keys; with weights alone, a version is not published."""
        return self.manifest_key in present and self.has_weights(present)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.student_id}/v{self.version}"
