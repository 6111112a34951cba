"""Errors keep what they say wherever they go."""

import pickle

import pytest

from mesh.errors import (
    AivoError,
    BaseModelOutOfMemory,
    CloneNotFound,
    DeadlineExceeded,
    InvalidField,
    ModelNotLoaded,
    ModelVersionNotFound,
    PublishConflict,
    QueueFull,
    Violation,
)


@pytest.mark.parametrize(
    "error",
    [
        CloneNotFound(clone_id="clone_1"),
        ModelVersionNotFound(student_id="student123", version=7),
        InvalidField([Violation("prompt", "must not be empty"), Violation("context.grade", "must be one of K, 1")]),
        QueueFull(limit=64, retry_seconds=1.5),
        PublishConflict("the pointer moved", student_id="student123"),
        DeadlineExceeded(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_a_process_border_whole(error: AivoError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.reason == error.reason


def test_an_invalid_field_names_every_fault() -> None:
    error = InvalidField([Violation("prompt", "must not be empty"), Violation("context.grade", "must be one of K, 1")])
    assert str(error) == "prompt: must not be empty; context.grade: must be one of K, 1"


def test_a_finer_class_keeps_the_reason_that_callers_know() -> None:
    assert BaseModelOutOfMemory("8 GB wanted, 4 GB there").reason == ModelNotLoaded.reason == "MODEL_NOT_LOADED"
