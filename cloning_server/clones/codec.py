"""Clones and baselines as the JSON that the clone store holds."""

from pydantic import TypeAdapter

from cloning_server.clone import Baseline, Clone

_CLONE = TypeAdapter(Clone)
_BASELINE = TypeAdapter(Baseline)


def encode_clone(clone: Clone) -> bytes:
    """A clone as JSON."""
    return _CLONE.dump_json(clone)


def decode_clone(json: str) -> Clone:
    """The inverse of `encode_clone`."""
    return _CLONE.validate_json(json)


def encode_baseline(baseline: Baseline) -> bytes:
    """A baseline as JSON."""
    return _BASELINE.dump_json(baseline)


def decode_baseline(json: str) -> Baseline:
    """The inverse of `encode_baseline`."""
    return _BASELINE.validate_json(json)
