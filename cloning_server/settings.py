"""Settings of the cloning server."""

import ipaddress
from typing import Self

from pydantic import Field, field_validator, model_validator

from mesh.sealing.settings import SealingSettings
from mesh.settings import AdapterStoreSettings, AdapterTrustSettings, BaseModelSettings, ServingSettings

# A school year: classes take the same assessments term after term.
REPLY_CACHE_DAYS = 300.0


class CloningSettings(ServingSettings, BaseModelSettings, AdapterStoreSettings, AdapterTrustSettings, SealingSettings):
    """The settings that the cloning server reads from the environment."""

    cloning_host: str = "127.0.0.1"
    cloning_port: int = Field(default=50052, ge=0, le=65535)
    cloning_metrics_port: int = Field(default=9802, ge=0, le=65535)

    redis_url: str = Field(default="redis://127.0.0.1:6390/0", pattern=r"^(rediss?|unix)://.+")
    brain_address: str = Field(default="127.0.0.1:50051", min_length=1)

    # None: the server starts a Ray cluster of its own. Ray's client (`ray://`) can't stream a training's progress.
    ray_address: str | None = Field(default=None, pattern=r"^[^/\s]+$")
    trainers: int = Field(default=1, ge=1, le=256)
    # None: all CPUs of this machine; without a cluster, divided among the trainers.
    trainer_cpus: float | None = Field(default=None, gt=0)
    trainer_gpus: float = Field(default=0, ge=0)

    clone_queue_limit: int = Field(default=64, ge=1)
    # Of one baseline as JSON. Sealed, Valkey holds a third more until the clone ends, rounded up to the next 0.5 MiB: a
    # full queue of the largest takes 235 MB. The gateway takes bodies of 8 MiB.
    clone_order_bytes: int = Field(default=2_600_000, ge=100_000, le=8 << 20)
    # None: see `clones_at_once`.
    parallel_clones: int | None = Field(default=None, ge=1, le=1024)
    clone_epochs: int = Field(default=2, ge=1, le=100)
    clone_least_steps: int = Field(default=45, ge=0, le=1000)
    class_size: int = Field(default=8, ge=1, le=64)
    # A lease that is shorter than a brief outage of the store or the network makes clones start again needlessly.
    lease_seconds: float = Field(default=15, ge=1, le=600)

    # Empty: no clone starts from a cohort's adapter. Short, because an id must also hold the words of the profile.
    cohort_prefix: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,23})?$")
    require_consent: bool = False
    keep_versions: int = Field(default=5, ge=1)
    # None: students' data stays for ever.
    retention_days: float | None = Field(default=None, gt=0, le=36_500)
    # If more students than this share are due, a clock or a setting is probably wrong.
    retention_largest_share: float = Field(default=0.05, gt=0, le=1)
    housekeeping_seconds: float = Field(default=3600, gt=0)
    # A watcher who was away for a night still sees every change.
    clone_changes_hours: float = Field(default=24, ge=0)
    file_rewrite_seconds: float = Field(default=60, gt=0)

    # The contract promises a heartbeat at least every 15 seconds.
    heartbeat_seconds: float = Field(default=10, gt=0, le=15)
    # The longest training of one attempt: a thousand responses take half an hour on two cores, a class of them longer.
    train_timeout_seconds: float = Field(default=14_400, gt=0)
    # How long a trained adapter waits for a store or a brain that is down before its clone fails.
    save_timeout_seconds: float = Field(default=600, ge=0)
    deploy_timeout_seconds: float = Field(default=600, ge=0)
    # Wait before a clone runs again whose trainer died; doubles with each time.
    trainer_pause_seconds: float = Field(default=5, ge=0)

    @field_validator("brain_address")
    @classmethod
    def _is_one_brain(cls, address: str) -> str:
        # gRPC would take a list for one name that it can't find, and each clone would wait for that brain in vain.
        if "," in address:
            raise ValueError("must be one host:port here: that of one brain, or a name with the addresses of all")
        return address

    @model_validator(mode="after")
    def _seals_beyond_loopback(self) -> Self:
        if not self.has_master_key and not _is_loopback(self.cloning_host):
            raise ValueError(
                "MASTER_KEY_FILE, MASTER_KEY or MASTER_KEY_KMS: a server that listens beyond loopback (CLONING_HOST) "
                "needs a key to seal students' baselines with"
            )
        return self

    @property
    def reply_cache_seconds(self) -> int:
        """How long a distilled reply is kept: a school year, but no longer than students' data is."""
        return round(min(REPLY_CACHE_DAYS, self.retention_days or REPLY_CACHE_DAYS) * 24 * 3600)

    @property
    def clones_at_once(self) -> int:
        """How many clones a server runs at once: as set, or else one class per trainer with GPUs, one clone without.

        The step of one student leaves most of a GPU idle, so a class takes less time than its students one after
        another. One student keeps the CPUs busy: a class would hardly end sooner, and all its students would end last.
        """
        return self.parallel_clones or self.trainers * (self.class_size if self.trainer_gpus else 1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
