"""Typed settings from the environment.

A server's settings are one frozen class made of the parts below, so that every fault of the environment is found in one
go. A field is read from the variable with its name in upper case; an empty variable counts as unset.
"""

from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class InvalidSettings(Exception):
    """The environment can't be used; the message has one line per fault, with the variable's name."""


class Settings(BaseSettings):
    """The base of every settings class: frozen, read from the environment alone."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore")


class ConnectionSettings(Settings):
    """How long connections live, at the gateway and behind it."""

    # Longer than browsers keep connections that they may use again: they close first, and send nothing into a
    # connection that is being closed. The gateway closes its own to the servers a little sooner.
    connection_idle_seconds: int = Field(default=300, ge=1, le=86_400)


class ServingSettings(ConnectionSettings):
    """How a server logs, drains, bounds its callers and watches, and answers reflection."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    # Shorter than the pod's terminationGracePeriodSeconds (45), so that a drain ends before the kill.
    drain_seconds: float = Field(default=30, ge=0)
    reflection: bool = True
    # Each watch holds memory, and reads its store at every heartbeat.
    watch_limit: int = Field(default=5000, ge=1)
    # A whole school may share an address, and a backend that speaks for a whole district is one caller. A quarter of
    # what the gateway passes on to one server, and half of all watches.
    caller_limit: int = Field(default=2_500, ge=1)


class BaseModelSettings(Settings):
    """Which base model is loaded, and how."""

    base_model: str = "SmolLM2-135M-Instruct"
    use_4bit_quantization: bool = False
    use_8bit_quantization: bool = False
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    allow_fallback_model: bool = False
    model_cache_dir: Path = Path(".aivo/models")
    roles_dir: Path | None = None

    @model_validator(mode="after")
    def _one_quantization(self) -> Self:
        if self.use_4bit_quantization and self.use_8bit_quantization:
            raise ValueError("USE_4BIT_QUANTIZATION and USE_8BIT_QUANTIZATION: set at most one")
        return self

    @property
    def quantization(self) -> Literal["none", "4bit", "8bit"]:
        """The format of the base weights."""
        if self.use_4bit_quantization:
            return "4bit"
        return "8bit" if self.use_8bit_quantization else "none"


class AdapterStoreSettings(Settings):
    """Where adapters are stored. Credentials and region come from AWS's own variables."""

    s3_endpoint_url: str | None = None
    s3_bucket: str = "aivo-models"
    # Far below the callers' own timeouts: a store that is down gets an error, not a wait.
    s3_connect_timeout_seconds: float = Field(default=2, gt=0)
    s3_read_timeout_seconds: float = Field(default=10, gt=0)
    tenant: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")


class AdapterTrustSettings(Settings):
    """How long a brain trusts what it has read of the adapter store. Both servers need the same values."""

    # How long a newly activated version, or a removed one, may go unnoticed without a notice.
    adapter_pointer_ttl_seconds: float = Field(default=2, ge=0)
    # How long a brain that hears from neither store nor Valkey answers with the adapters that it holds.
    adapter_outage_seconds: float = Field(default=60, ge=0)

    @property
    def adapter_trust_seconds(self) -> float:
        """The longest that a brain answers with an adapter after its last word of the store or of Valkey."""
        return max(self.adapter_pointer_ttl_seconds, self.adapter_outage_seconds)


S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S]) -> S:
    """Reads settings from the environment.

    Raises:
        InvalidSettings: If any variable is missing or wrong; names all of them.
    """
    try:
        return kind()
    except ValidationError as error:
        raise InvalidSettings("\n".join(_lines(error))) from None


def _lines(error: ValidationError) -> list[str]:
    # A fault of several variables together has no location; its message names them.
    return [
        ": ".join([*(str(part).upper() for part in fault["loc"]), fault["msg"].removeprefix("Value error, ")])
        for fault in error.errors(include_input=False, include_url=False)
    ]
