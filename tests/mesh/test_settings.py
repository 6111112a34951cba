"""The environment is read whole, and refused with all its faults at once."""

import os
from pathlib import Path

import pytest

from mesh.settings import AdapterStoreSettings, BaseModelSettings, InvalidSettings, ServingSettings, load_settings


class BothSettings(ServingSettings, BaseModelSettings, AdapterStoreSettings):
    """What a server's settings are made of."""

    port: int = 50051


class RequiredSettings(ServingSettings):
    """Settings without a default."""

    brain_address: str


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any of the variables."""
    variables = {name.upper() for name in (*BothSettings.model_fields, *RequiredSettings.model_fields)}
    for name in os.environ:
        if name.upper() in variables:
            monkeypatch.delenv(name)
    return monkeypatch


def test_without_variables_the_defaults_hold() -> None:
    settings = load_settings(BothSettings)
    assert settings.base_model == "SmolLM2-135M-Instruct"
    assert settings.quantization == "none"
    assert settings.model_cache_dir == Path(".aivo/models")
    assert settings.drain_seconds == 30
    assert settings.reflection


def test_a_variable_is_the_field_in_upper_case(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("BASE_MODEL", "mistralai/Mistral-7B-Instruct-v0.2")
    environment.setenv("USE_4BIT_QUANTIZATION", "true")
    environment.setenv("REFLECTION", "0")
    environment.setenv("DEVICE", "cuda:1")
    settings = load_settings(BothSettings)
    assert settings.base_model == "mistralai/Mistral-7B-Instruct-v0.2"
    assert settings.quantization == "4bit"
    assert not settings.reflection
    assert settings.device == "cuda:1"


def test_an_empty_variable_counts_as_unset(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PORT", "")
    environment.setenv("S3_ENDPOINT_URL", "")
    settings = load_settings(BothSettings)
    assert settings.port == 50051
    assert settings.s3_endpoint_url is None


def test_all_faults_are_told_at_once_with_the_variables_names(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PORT", "fifty")
    environment.setenv("DRAIN_SECONDS", "-1")
    environment.setenv("LOG_LEVEL", "loud")
    environment.setenv("DEVICE", "tpu")
    environment.setenv("TENANT", "../other")
    with pytest.raises(InvalidSettings) as caught:
        load_settings(BothSettings)
    lines = str(caught.value).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == [
        "DEVICE",
        "DRAIN_SECONDS",
        "LOG_LEVEL",
        "PORT",
        "TENANT",
    ]
    assert not any(value in str(caught.value) for value in ("fifty", "loud", "tpu", "../other"))


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(InvalidSettings, match=r"^BRAIN_ADDRESS: Field required$"):
        load_settings(RequiredSettings)


def test_two_kinds_of_quantization_are_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("USE_4BIT_QUANTIZATION", "true")
    environment.setenv("USE_8BIT_QUANTIZATION", "true")
    with pytest.raises(InvalidSettings, match=r"^USE_4BIT_QUANTIZATION and USE_8BIT_QUANTIZATION: set at most one$"):
        load_settings(BothSettings)


def test_settings_do_not_change() -> None:
    settings = load_settings(BothSettings)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
