"""The manifest and the pointer as JSON."""

import json
import math
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mesh.adapters.manifest import Lora, Manifest, Metrics
from mesh.adapters.pointer import Pointer
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt
from testing.policy import POLICY
from tests.mesh.adapters.conftest import recipe, weights

REF = AdapterRef(student_id="student123", version=3)

LOSSES = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
METRICS = st.builds(
    Metrics,
    heldout_loss_base=LOSSES,
    heldout_loss_adapter=LOSSES,
    train_steps=st.integers(min_value=0, max_value=2**31),
    seconds_per_step=LOSSES,
    seconds=LOSSES,
)
LORAS = st.builds(
    Lora,
    rank=st.integers(min_value=1, max_value=256),
    alpha=st.floats(min_value=0.1, max_value=512),
    target_modules=st.sets(st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj"]), min_size=1).map(
        lambda names: tuple(sorted(names))
    ),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
)


def document() -> dict[str, object]:
    """A manifest's JSON as plain values."""
    parsed: dict[str, object] = json.loads(Manifest.of(weights(), ref=REF, recipe=recipe()).to_json())
    return parsed


@given(METRICS, LORAS, st.integers(min_value=0, max_value=2**63 - 1), st.binary(min_size=1, max_size=100))
def test_a_manifest_survives_json(metrics: Metrics, lora: Lora, seed: int, data: bytes) -> None:
    manifest = Manifest.of(data, ref=REF, recipe=replace(recipe(), metrics=metrics, lora=lora, seed=seed))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_teaching_policy_survives_json() -> None:
    manifest = Manifest.of(weights(), ref=REF, recipe=replace(recipe(), policy=POLICY))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_of_before_policies_is_read_without_one() -> None:
    fields = document()
    fields["recipe"] = {name: value for name, value in recipe_of(fields).items() if name != "policy"}
    assert Manifest.from_json(json.dumps(fields).encode()).recipe.policy is None


@pytest.mark.parametrize(
    ("dimension", "fault"),
    [
        ("writing", {"level": "superb"}),
        ("writing", {"words": -1}),
        ("mistakes", {"wrong": "2"}),
        ("guidance", {"requests": None}),
    ],
)
def test_a_manifest_with_a_wrong_policy_is_corrupt(dimension: str, fault: dict[str, object]) -> None:
    fields = json.loads(Manifest.of(weights(), ref=REF, recipe=replace(recipe(), policy=POLICY)).to_json())
    fields["recipe"]["policy"][dimension] |= fault
    with pytest.raises(AdapterCorrupt, match=f"policy.{dimension}"):
        Manifest.from_json(json.dumps(fields).encode())


def recipe_of(fields: dict[str, object]) -> dict[str, object]:
    """The recipe in a manifest's plain values."""
    parsed_recipe = fields["recipe"]
    assert isinstance(parsed_recipe, dict)
    return parsed_recipe


def test_a_manifest_tells_the_weights_identity() -> None:
    manifest = Manifest.of(weights(), ref=REF, recipe=recipe())
    assert manifest.sha256 == sha256(weights()).hexdigest()
    assert manifest.size_bytes == len(weights())
    assert manifest.recipe.scaling == 1.5 * 8 / 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 3),
        ("schema", "1"),
        ("ref", {"student_id": "../x", "version": 1, "tenant": "default"}),
        ("ref", {"student_id": "x", "version": "1", "tenant": "default"}),
        ("ref", {"student_id": "x", "version": 0, "tenant": "default"}),
        ("sha256", "F" * 64),
        ("size_bytes", 0),
        ("size_bytes", 1.5),
        ("created_time", "2025-01-15T10:30:00"),
        ("recipe", None),
    ],
)
def test_a_manifest_with_a_wrong_field_is_corrupt(field: str, value: object) -> None:
    with pytest.raises(AdapterCorrupt, match="parse"):
        Manifest.from_json(json.dumps(document() | {field: value}).encode())


def test_fields_of_a_newer_server_are_ignored() -> None:
    manifest = Manifest.of(weights(), ref=REF, recipe=replace(recipe(), policy=POLICY))
    fields = json.loads(manifest.to_json())
    for part in (fields, fields["ref"], fields["recipe"], fields["recipe"]["metrics"], fields["recipe"]["policy"]):
        part["later"] = "a field that this version does not know"
    fields["recipe"]["policy"]["guidance"]["later"] = 1
    assert Manifest.from_json(json.dumps(fields).encode()) == manifest


def test_fields_at_their_defaults_are_left_out_for_older_servers() -> None:
    fields = document()
    assert not {"policy", "start"} & recipe_of(fields).keys()


@pytest.mark.parametrize("field", list(document()))
def test_a_manifest_without_a_field_is_corrupt(field: str) -> None:
    rest = {name: value for name, value in document().items() if name != field}
    with pytest.raises(AdapterCorrupt, match=field):
        Manifest.from_json(json.dumps(rest).encode())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_manifest_and_no_pointer_are_corrupt(data: bytes) -> None:
    with pytest.raises(AdapterCorrupt):
        Manifest.from_json(data)
    with pytest.raises(AdapterCorrupt):
        Pointer.from_json(data)


def test_a_corrupt_manifests_values_stay_out_of_the_message() -> None:
    text = json.dumps(document()).replace('"adhd"', '["a private word"]')
    with pytest.raises(AdapterCorrupt, match="disability") as refusal:
        Manifest.from_json(text.encode())
    assert "private" not in str(refusal.value)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -1.0])
def test_a_loss_that_is_no_loss_is_refused_before_it_is_stored(loss: float) -> None:
    with pytest.raises(ValidationError):
        replace(recipe().metrics, heldout_loss_adapter=loss)
