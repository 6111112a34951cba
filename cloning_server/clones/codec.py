"""Clones and baselines as the JSON that the clone store holds.

A stored clone has no teaching policy: it is drawn from the student's answers and holds their interests, and a clone's
record stays longer than its baseline. The manifest in the adapter store has it.
"""

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from cloning_server.clone import Baseline, Clone
from mesh.errors import CloneCorrupt, InvalidField

T = TypeVar("T")

_CLONE = TypeAdapter(Clone)
_BASELINE = TypeAdapter(Baseline)


def encode_clone(clone: Clone) -> bytes:
    """A clone as JSON."""
    return _CLONE.dump_json(clone, exclude={"manifest": {"recipe": {"policy"}}})


def decode_clone(json: str, *, clone_id: str) -> Clone:
    """The inverse of `encode_clone`, but for the policy.

    Raises:
        CloneCorrupt: This is no clone's JSON.
    """
    return _decode(_CLONE, json, clone_id)


def encode_baseline(baseline: Baseline) -> bytes:
    """A baseline as JSON."""
    return _BASELINE.dump_json(baseline)


def decode_baseline(json: bytes, *, clone_id: str) -> Baseline:
    """The inverse of `encode_baseline`.

    Raises:
        CloneCorrupt: This is no baseline's JSON.
    """
    return _decode(_BASELINE, json, clone_id)


def _decode(kind: TypeAdapter[T], json: str | bytes, clone_id: str) -> T:
    try:
        return kind.validate_json(json)
    except (ValidationError, InvalidField):
        # Not the cause: that quotes the record, which is about a student.
        raise CloneCorrupt(clone_id=clone_id) from None
