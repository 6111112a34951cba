"""Settings of the brain."""

from pydantic import Field

from brain_server.engine.settings import EngineSettings
from brain_server.safety.settings import SafetySettings
from mesh.settings import AdapterStoreSettings, ServingSettings


class BrainSettings(ServingSettings, EngineSettings, SafetySettings, AdapterStoreSettings):
    """All settings of the brain, from the environment."""

    brain_host: str = "127.0.0.1"
    brain_port: int = Field(default=50051, ge=0, le=65535)
    brain_metrics_port: int = Field(default=9801, ge=0, le=65535)

    # Redis that sends a notice when a version is activated. None: a pointer is read again only when it expires.
    redis_url: str | None = Field(default=None, pattern=r"^(rediss?|unix)://.+")
