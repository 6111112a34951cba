"""Settings of the gateway: where it listens, which hosts and web origins may call, and where the servers are."""

from itertools import combinations
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_settings import NoDecode

from mesh.settings import ConnectionSettings

Port = Annotated[int, Field(ge=1, le=65535)]
# Hosts and addresses become part of a YAML file: nothing else is accepted.
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,253}$")]
Address = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,253}:[0-9]{1,5}$")]
# As in a Host header, without a port: a name, or an address with the brackets of IPv6.
ServedHost = Annotated[
    str, StringConstraints(pattern=r"^(\*|[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])$", to_lower=True)
]
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?)$")]


def _split(value: object) -> object:
    """Splits the value of a variable at its commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
ServedHosts = Annotated[tuple[ServedHost, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
Origins = Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split)]


class GatewaySettings(ConnectionSettings):
    """What `envoy.yaml` is filled in with."""

    gateway_host: Host = "127.0.0.1"
    brain_rest_port: Port = 8001
    cloning_rest_port: Port = 8014
    envoy_metrics_port: Port = 9901
    # Several replicas, or one name with several addresses.
    brain_address: Addresses = ("127.0.0.1:50051",)
    cloning_address: Addresses = ("127.0.0.1:50052",)
    # Names by which callers may reach the gateway, with any port; `*` is any.
    allowed_hosts: ServedHosts = ("localhost", "127.0.0.1", "[::1]")
    # Web origins whose pages may call, separated by commas; `*` is any. None by default.
    cors_allow_origins: Origins = ()
    envoy_log_level: Literal["debug", "info", "warning", "error"] = "warning"

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        for first, second in combinations(("brain_rest_port", "cloning_rest_port", "envoy_metrics_port"), 2):
            if getattr(self, first) == getattr(self, second):
                raise ValueError(
                    f"{first.upper()} and {second.upper()} are both {getattr(self, first)}; set one to another port"
                )
        return self
