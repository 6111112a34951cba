"""Ids and keys."""

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.ref import (
    STUDENT_ID_PATTERN,
    AdapterRef,
    StudentKeys,
    TenantKeys,
    is_student_id,
    validate_student_id,
)
from mesh.errors import InvalidField

VALID_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(lambda value: ".." not in value)


@pytest.mark.parametrize("value", ["student123", "a", "9", "A.b_c-d", "x" * 64, "a."])
def test_an_id_of_the_pattern_is_accepted(value: str) -> None:
    assert validate_student_id(value) == value


@pytest.mark.parametrize(
    "value", ["", ".", "..", "../x", "a..b", "a/b", "a\\b", "-a", ".a", "_a", "a\n", "a b", "a\0", "é", "x" * 65, "%2e"]
)
def test_an_id_outside_the_pattern_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        validate_student_id(value, field="context.student_id")
    (violation,) = refusal.value.violations
    assert violation.field == "context.student_id"
    assert "64" in violation.description
    assert len(value) < 3 or value not in str(refusal.value)


@given(st.text(max_size=70) | st.text(alphabet="ab./\\%\n-_", max_size=10))
def test_no_accepted_id_leaves_its_own_folder(value: str) -> None:
    if not is_student_id(value):
        with pytest.raises(InvalidField):
            AdapterRef(student_id=value, version=1)
        return
    ref = AdapterRef(student_id=value, version=1)
    assert posixpath.normpath(ref.weights_key) == ref.weights_key
    assert ref.weights_key.split("/") == ["default", value, "v1", "adapter_model.safetensors"]


@given(VALID_IDS, VALID_IDS, st.integers(min_value=1, max_value=999_999_999))
def test_a_students_keys_are_its_own_and_tell_their_version(student: str, other: str, version: int) -> None:
    keys = StudentKeys(student_id=student)
    ref = AdapterRef(student_id=student, version=version)

    version_keys = (ref.weights_key, ref.bare_weights_key, ref.config_key, ref.manifest_key)
    assert {keys.version_in(key) for key in version_keys} == {version}
    assert keys.version_in(keys.active) is None
    tenant = TenantKeys()
    assert keys.version_in(tenant.commit(other)) is None
    assert {tenant.student_in(key) for key in (*version_keys, keys.active)} == {student}
    assert tenant.student_in(tenant.commit(other)) is None
    assert not tenant.commit(other).startswith(keys.prefix)
    if other != student:
        assert not StudentKeys(student_id=other).active.startswith(keys.prefix)


@given(VALID_IDS)
def test_the_pattern_as_published_is_the_one_that_decides(value: str) -> None:
    assert re.fullmatch(STUDENT_ID_PATTERN, value)


def test_a_version_below_one_is_refused() -> None:
    with pytest.raises(InvalidField):
        AdapterRef(student_id="student123", version=0)
