"""Settings of the engine.

Knows nothing of torch, so that settings are read, and errors in them reported, before anything heavy is loaded.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from mesh.settings import AdapterTrustSettings, BaseModelSettings


class EngineSettings(BaseModelSettings, AdapterTrustSettings):
    """Which base model answers, and how much work and memory the engine may take on."""

    # Where replies are computed: by torch in this process, or by a vLLM server beside it.
    engine: Literal["torch", "vllm"] = "torch"
    vllm_url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://.+")
    # Folder of the adapters for vLLM: used by this brain alone, and under the same path in both processes.
    vllm_adapter_dir: Path = Path(".aivo/vllm-adapters")
    # Requests that may wait, beside those that decode. Two cores answer sixteen in some seconds, so the last of 256
    # waits for about two minutes; more requests would only wait longer.
    queue_limit: int = Field(default=256, ge=1)
    # Requests per student, waiting or decoding, so that no student fills the queue alone.
    student_limit: int = Field(default=8, ge=1)
    # Requests that name no student, and the gradings of Assess, together. None: see `anonymous_places`.
    anonymous_limit: int | None = Field(default=None, ge=1)
    # Replies that are decoded at the same time, each in a row of the key-value cache.
    max_batch: int = Field(default=16, ge=1)
    # Bytes of that cache, allocated once. A row's share limits a prompt and its reply together: to 2,912 tokens for the
    # default base model in bf16 and 16 rows.
    kv_cache_bytes: int = Field(default=1024 * 1024 * 1024, ge=1)
    # Tokens of prompts that are processed between two tokens of the running replies.
    prefill_tokens: int = Field(default=128, ge=1)
    # Adapters on the device at the same time, allocated once. At least `max_batch`, so that no reply waits for a slot.
    adapter_slots: int = Field(default=32, ge=1)
    # The largest adapter that fits; each slot has room for one.
    adapter_max_rank: int = Field(default=16, ge=1, le=256)
    adapter_target_modules: Annotated[tuple[str, ...], NoDecode] = ("q_proj", "v_proj")
    # A step of the batch takes less than a second. Health reports a stall when one takes longer than this.
    stall_seconds: float = Field(default=30, gt=0)
    # Adapters kept in host memory: about 280 of the default base model's 1.8 MB, or ten of a 7B model's 50 MB.
    adapter_host_bytes: int = Field(default=512 * 1024 * 1024, ge=0)
    # How long a request waits for its adapter. A fetch takes some 60 ms, so this much means that the store hangs.
    adapter_choice_seconds: float = Field(default=1, gt=0)

    @property
    def places(self) -> int:
        """Most requests that wait or decode at the same time."""
        return self.queue_limit + self.max_batch

    @property
    def anonymous_places(self) -> int:
        """Most of them that name no student: as set, or a quarter, so that students find a place at any time."""
        return self.anonymous_limit or max(1, self.places // 4)

    @property
    def modelless_places(self) -> int:
        """Most of them whose students have no model, as students may be made up: half, so that the others find one."""
        return max(1, self.places // 2)

    @field_validator("adapter_target_modules", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _enough_slots(self) -> Self:
        if self.adapter_slots < self.max_batch:
            raise ValueError("ADAPTER_SLOTS must be at least MAX_BATCH, so that no reply waits for a slot")
        return self
