"""The interface of an engine: it decodes replies, weighs labels, and holds adapters.

Knows neither gRPC nor torch.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from brain_server.engine.main_brain import MainBrainFacts
from mesh.adapters.ref import AdapterRef
from mesh.lm.chat import Prompt
from mesh.main_brain.roles import RoleName


class AdapterPolicy(Enum):
    """Which model may answer."""

    PREFER = auto()
    REQUIRE = auto()
    BASE_ONLY = auto()


class Fallback(Enum):
    """Why the student's adapter did not answer.

    No engine gives the last three: they are for feedback, and for replies that people wrote.
    """

    NO_STUDENT = auto()
    BASE_ONLY = auto()
    NO_STUDENT_MODEL = auto()
    ADAPTER_STORE_UNAVAILABLE = auto()
    OUTDATED = auto()
    ADAPTER_BROKEN = auto()
    FEEDBACK_REJECTED = auto()
    SAFETY = auto()


class FinishReason(Enum):
    """Why decoding ended. No engine gives the last: screening does."""

    STOP = auto()
    LENGTH = auto()
    SAFETY = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample tokens. What is None comes from the model's serving profile, else from the defaults.

    The reply ends before the first of the `stop` sequences, with `FinishReason.STOP`.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One conversation to continue.

    Attributes:
        prompt: The student's profile and the conversation so far.
        student_id: The student whose adapter decodes; None for the base model.
        policy: Which model may answer.
        version: Adapter version to use instead of the active one; implies REQUIRE.
        sampling: How to sample tokens.
        json_schema: Schema (JSON text) that the reply must satisfy; None leaves it free.
        deadline: When the work must end, in `time.monotonic()` seconds; None for never.
    """

    prompt: Prompt
    student_id: str | None = None
    policy: AdapterPolicy = AdapterPolicy.PREFER
    version: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    json_schema: str | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """The identity of an adapter: its version and the sha256 of its bytes."""

    ref: AdapterRef
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time went, in milliseconds. `first_token_ms` and `total_ms` count from the arrival of the request."""

    queue_ms: float
    adapter_load_ms: float
    first_token_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of a reply: whole characters, never empty."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply and how it came to be; exactly one of `adapter` and `fallback` is set.

    `main_brain` is the digest of the Main Brain that replied.
    """

    text: str
    model: str
    main_brain: str
    adapter: LoadedAdapter | None
    fallback: Fallback | None
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmedAdapter:
    """An adapter that was loaded, and has decoded a probe as proof."""

    adapter: LoadedAdapter
    bytes: int
    load_ms: float
    probe_tokens: int


class Tier(Enum):
    """Where an adapter's weights are: in host memory, or in a slot of the device."""

    HOST = auto()
    SLOT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """An adapter in memory."""

    adapter: LoadedAdapter
    tier: Tier
    bytes: int
    leases: int
    last_used: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The state of an engine, for health checks.

    Attributes:
        ready: Whether it can decode now.
        loading: Whether it still loads the base model.
        reason: Why it is not ready, or what is wrong although it is; empty if all is well.
        model: Name of the base model that answers; of the configured one while none is loaded.
        device: `cuda`, `cpu` or `vllm`.
        gpu_available: Whether the machine has a usable GPU.
        quantization: `none`, `4bit` or `8bit`.
        dtype: Such as `bfloat16`; empty until the model is loaded.
        fallback_for: The configured base model, if the catalogue's fallback answers in its place; else empty.
        main_brain: The Main Brain that answers; None until its files are there.
    """

    ready: bool
    loading: bool
    reason: str
    model: str
    device: str
    gpu_available: bool
    quantization: str
    dtype: str
    fallback_for: str
    main_brain: MainBrainFacts | None = None


@dataclass(slots=True, kw_only=True)
class TierCounts:
    """Counters of one tier of adapters since the start, and its present size.

    Attributes:
        hits: Requests for an adapter that was in the tier.
        misses: Requests for one that was not.
        evictions: Adapters that were removed to make room.
        load_seconds: Time spent on loading adapters into the tier.
        bytes: Size of the weights that are in the tier now.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounts:
    """Figures for metrics.

    Attributes:
        waiting: Requests that wait now.
        running: Requests that are being decoded now.
        tokens: Tokens decoded since the start.
        host: Counters of the adapters in host memory.
        slot: Counters of the adapters in slots.
        role_prompts: Prompts that each role has read since the start, for the roles that run.
    """

    waiting: int
    running: int
    tokens: int
    host: TierCounts
    slot: TierCounts
    role_prompts: Mapping[RoleName, int] = field(default_factory=dict)


class Engine(Protocol):
    """Decodes replies with the base model and the students' adapters.

    Every method raises `ModelNotLoaded` until the base model is loaded. Methods that decode raise `QueueFull` at once
    when too many requests wait, `DeadlineExceeded` when the deadline passes, and `InvalidField` for a conversation that
    does not fit the context window.
    """

    @property
    def facts(self) -> EngineFacts:
        """The engine's state; never raises."""
        ...

    def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        """Decodes: yields zero or more deltas, then the reply. Closing the generator stops the work within one token.

        Raises:
            StudentModelNotFound: An adapter is required and the student has none.
            ModelVersionNotFound: The requested version does not exist.
            AdapterStoreUnavailable: An adapter is required and can't be fetched.
            AdapterCorrupt: The stored adapter fails its checks.
            AdapterIncompatible: The adapter does not fit the base model or the slot.
        """
        ...

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, role: RoleName | None = None, deadline: float | None = None
    ) -> Mapping[str, float]:
        """Returns how likely the Main Brain is to begin its reply with each label; the probabilities add up to 1.

        With a role of `MainBrainFacts.roles`, its adapter reads the prompt. The first tokens of the labels then decide,
        if they differ, as roles are trained on those. A role that the engine lacks changes nothing. One that fails is
        left out from then on: this call raises `ModelNotLoaded`, and `EngineFacts` says why. The guard needs no place
        of the queue, as each text that it reads belongs to a call that has one.
        """
        ...

    async def warm(self, student_id: str, version: int | None = None) -> WarmedAdapter:
        """Reads the pointer again, loads the adapter and decodes a probe with it. Raises as `stream` does."""
        ...

    def residencies(self) -> Sequence[Residency]:
        """Returns the adapters in memory, most recently used first."""
        ...

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        """Removes a student's adapters from memory and returns them; one in use goes when its last reply ends."""
        ...


async def complete(engine: Engine, generation: Generation) -> Reply:
    """Decodes a whole reply. Raises as `Engine.stream` does."""
    async with aclosing(engine.stream(generation)) as events:
        async for event in events:
            if isinstance(event, Reply):
                return event
    raise AssertionError("the engine ended a stream without a reply")
