"""Settings of the cloning server."""

from pydantic import Field

from mesh.settings import AdapterStoreSettings, BaseModelSettings, ServingSettings


class CloningSettings(ServingSettings, BaseModelSettings, AdapterStoreSettings):
    """Everything that the cloning server reads from the environment."""

    cloning_host: str = "127.0.0.1"
    cloning_port: int = Field(default=50052, ge=0, le=65535)
    cloning_metrics_port: int = Field(default=9802, ge=0, le=65535)

    redis_url: str = Field(default="redis://127.0.0.1:6390/0", pattern=r"^(rediss?|unix)://.+")
    brain_address: str = Field(default="127.0.0.1:50051", min_length=1)

    # None: Ray runs in this process's own cluster. Ray's client (`ray://`) can't stream a training's progress.
    ray_address: str | None = Field(default=None, pattern=r"^[^/\s]+$")
    trainers: int = Field(default=1, ge=1, le=256)
    # None: as many as this machine has; without a cluster, the trainers' share of them.
    trainer_cpus: float | None = Field(default=None, gt=0)
    trainer_gpus: float = Field(default=0, ge=0)

    clone_queue_limit: int = Field(default=64, ge=1)
    # None: see `clones_at_once`.
    parallel_clones: int | None = Field(default=None, ge=1, le=1024)
    clone_epochs: int = Field(default=3, ge=1, le=100)
    class_size: int = Field(default=8, ge=1, le=64)
    # Shorter than a store's or a network's hiccup, and clones start anew for nothing.
    lease_seconds: float = Field(default=15, ge=1, le=600)

    # Empty: nobody starts from a cohort's adapter. Short, as the profile's words have to fit in an id behind it.
    cohort_prefix: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,23})?$")
    require_consent: bool = False
    keep_versions: int = Field(default=5, ge=1)
    # None: for ever.
    retention_days: float | None = Field(default=None, gt=0)
    housekeeping_seconds: float = Field(default=3600, gt=0)

    # What promises 15 seconds to a watcher must not be configured away.
    heartbeat_seconds: float = Field(default=10, gt=0, le=15)
    # How long a trained adapter waits for a part that is down before its clone fails.
    save_timeout_seconds: float = Field(default=600, ge=0)
    deploy_timeout_seconds: float = Field(default=600, ge=0)
    # Before a clone is tried again whose trainer died; doubles with each time.
    trainer_pause_seconds: float = Field(default=5, ge=0)

    @property
    def clones_at_once(self) -> int:
        """Clones that run at once on a server: as it is set, else a class a trainer where that helps.

        A student's step leaves most of a GPU idle, so a class ends sooner than its students one after another. CPUs are
        full with one: a class would end hardly sooner, and none of its students before all of them.
        """
        return self.parallel_clones or self.trainers * (self.class_size if self.trainer_gpus else 1)
