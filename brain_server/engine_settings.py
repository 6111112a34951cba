"""What of the brain's engine can be set from the environment.

Knows nothing of torch, so that settings are read, and their faults told, before anything heavy is loaded.
"""

from pydantic import Field

from mesh.settings import BaseModelSettings


class EngineSettings(BaseModelSettings):
    """Which base model answers, and how much work and memory the engine takes on."""

    # Calls that wait beside the one that decodes. At about 5 s a reply on two cores, the last of 32 waits less than
    # three minutes; more would only wait longer.
    queue_limit: int = Field(default=32, ge=1)
    # How long a newly activated version may go unnoticed by a brain that nobody told. Cloning warms what it publishes.
    adapter_pointer_ttl_seconds: float = Field(default=2, ge=0)
    # Adapters kept in host memory: about 280 of the default base model's 1.8 MB, or ten of a 7B model's 50 MB.
    adapter_host_bytes: int = Field(default=512 * 1024 * 1024, ge=0)
