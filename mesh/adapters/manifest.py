"""The manifest: how one version of an adapter was trained, which base model it fits, and how to serve it.

JSON, parsed strictly: an unknown schema, a missing field or a wrong type raises `AdapterCorrupt`. Unknown fields are
ignored, as a newer server may write optional ones. Fields at their defaults are left out, so that older servers read
what has nothing new. A manifest never holds a student's name or words; the interests of its policy are as the profile
names them.

A version of schema 2 is a folder that PEFT loads. In schema 1, of AIVO 0.1.0, the weights have another name and no
description; the two documents differ in nothing else. A server that knows only schema 1 takes schema 2 for corrupt.
"""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mesh.adapters.peft_config import peft_config
from mesh.adapters.ref import AdapterRef, validate_student_id
from mesh.errors import AdapterCorrupt, InvalidField
from mesh.tutoring.policy import TeachingPolicy

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Loss = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Word = Annotated[str, StringConstraints(max_length=64)]

_STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Lora:
    """Shape of the LoRA factors (https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: Rows of A and columns of B.
        alpha: Numerator of the scaling that training used, `alpha / rank`.
        target_modules: Last name of each adapted module, such as `q_proj`; sorted, without repeats.
        dtype: Data type of all factors, as safetensors spells it.
    """

    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0)]
    target_modules: Annotated[tuple[Word, ...], Field(min_length=1)]
    dtype: Literal["F32", "F16", "BF16"]

    def __post_init__(self) -> None:
        if tuple(sorted(set(self.target_modules))) != self.target_modules:
            raise ValueError("target_modules must be sorted and without repeats")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Serving:
    """The decoding parameters that optimisation picked; a request's temperature, top_p and length override them.

    Attributes:
        temperature: Randomness; 0 picks the likeliest token.
        top_p: Nucleus of the distribution that is sampled.
        max_tokens: Most tokens of a reply.
        unrepeated_run: A run of so many tokens without a digit occurs once in a reply, and one of four tokens twice; 0
            lets all runs repeat.
    """

    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    unrepeated_run: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.unrepeated_run == 1:
            raise ValueError("unrepeated_run must be 0 or at least 2")


# For what neither a request nor a serving profile says.
DEFAULT_SERVING = Serving(temperature=0.7, top_p=0.9, max_tokens=256)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Examples:
    """Where the training conversations came from.

    Attributes:
        given: Baseline responses received.
        feedback: Examples whose reply is the teacher's feedback.
        distilled: Examples whose reply was distilled from the base model.
        dropped: Responses that gave no example. A response gives one example per situation, so there are more examples.
        train: Examples trained on.
        heldout: Examples held out for measuring.
    """

    given: Count
    feedback: Count
    distilled: Count
    dropped: Count
    train: Count
    heldout: Count


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Metrics:
    """What training measured; losses are mean nats per reply token on the held-out examples.

    Attributes:
        heldout_loss_base: Loss of the base model, with the same prompts.
        heldout_loss_adapter: Loss of this version, at the chosen scale.
        train_steps: Number of steps; training stops early when the held-out loss rises.
        seconds_per_step: Duration of one step. Clones that trained together each have the duration of the joint step.
        seconds: Duration from the plan to the adapter.
        heldout_loss_previous: Loss of the previously active version, on the same examples; None if there was none.
        gate_replies: Number of greedy replies to held-out prompts that the gate judged.
        gate_well_formed: How many of them keep the form rules of the student's profile.
        gate_well_formed_base: How many of the base model's replies to the same prompts do.
        gate_policy_signs: Signs of the student's teaching policy that these replies could show.
        gate_policy_signs_shown: How many of them they show.
        gate_policy_signs_shown_base: How many the base model's replies show.
    """

    heldout_loss_base: Loss
    heldout_loss_adapter: Loss
    train_steps: Count
    seconds_per_step: Seconds
    seconds: Seconds
    heldout_loss_previous: Loss | None = None
    gate_replies: Count = 0
    gate_well_formed: Count = 0
    gate_well_formed_base: Count = 0
    gate_policy_signs: Count = 0
    gate_policy_signs_shown: Count = 0
    gate_policy_signs_shown_base: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Profile:
    """The part of the student's profile that shapes the prompt; an empty word is unknown. Never a name."""

    grade: Word = ""
    disability: Word = ""
    learning_style: Word = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Start:
    """The version from which training started: an earlier version of the student, or a cohort's.

    Attributes:
        student_id: The student or cohort that has the version.
        version: Number of the version.
        sha256: Digest of its weights, lower-case hex.
    """

    student_id: str
    version: Annotated[int, Field(ge=1)]
    sha256: Digest

    def __post_init__(self) -> None:
        validate_student_id(self.student_id, field="student_id")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Recipe:
    """How a version was trained and how to serve it: all that is known before the store numbers the version.

    Attributes:
        clone_id: The clone that trained it; a clone makes at most one version.
        base_model: Name of the base model.
        base_digest: Digest of the Main Brain, lower-case hex (`mesh.main_brain.files`); the adapter fits only this one.
            Without a tutor, sha256 of the base model's weights.
        lora: Shape of the factors.
        scale: Multiplier on LoRA's scaling; optimisation picks it on the held-out examples.
        serving: Decoding parameters to serve with.
        examples: Counts of the examples.
        metrics: Measurements of the training.
        seed: Seed of data order, split and initial factors.
        profile: The student's learning profile.
        data_digest: sha256 of the tokenised examples, lower-case hex.
        start: The version from which training started; None for a new adapter.
        policy: The teaching policy of the student's answers; None in manifests of before there were policies.

    Raises:
        pydantic.ValidationError: A value has the wrong type or is out of range.
        InvalidField: The clone id is malformed.
    """

    clone_id: str
    base_model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    base_digest: Digest
    lora: Lora
    scale: Annotated[float, Field(ge=0)]
    serving: Serving
    examples: Examples
    metrics: Metrics
    seed: int
    profile: Profile
    data_digest: Digest
    start: Start | None = None
    policy: TeachingPolicy | None = None

    def __post_init__(self) -> None:
        validate_student_id(self.clone_id, field="clone_id")

    @property
    def scaling(self) -> float:
        """The factor on the product of A and B when serving: `scale * alpha / rank`."""
        return self.scale * self.lora.alpha / self.lora.rank

    @property
    def peft_config(self) -> bytes:
        """PEFT's description of the weights, with the strength that serves: its alpha is `scale * alpha`."""
        return peft_config(
            base_model=self.base_model,
            rank=self.lora.rank,
            alpha=self.scale * self.lora.alpha,
            target_modules=self.lora.target_modules,
        )


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Manifest:
    """One version: the identity of its weights, and their recipe.

    Attributes:
        schema: Version of the document's format: 2; 1 for a version of AIVO 0.1.0, whose folder PEFT can't load.
        ref: The version.
        sha256: Digest of the weights file, lower-case hex: the identity under which a brain holds the adapter.
        size_bytes: Size of the weights file.
        created_time: Time when the manifest was written, UTC.
        recipe: How the weights were trained.
    """

    schema: Literal[1, 2]
    ref: AdapterRef
    sha256: Digest
    size_bytes: Annotated[int, Field(ge=1)]
    created_time: AwareDatetime
    recipe: Recipe

    @classmethod
    def of(cls, weights: bytes, *, ref: AdapterRef, recipe: Recipe) -> "Manifest":
        """Creates the manifest of these weights."""
        return cls(
            schema=2,
            ref=ref,
            sha256=sha256(weights).hexdigest(),
            size_bytes=len(weights),
            created_time=datetime.now(UTC),
            recipe=recipe,
        )

    @property
    def weights_key(self) -> str:
        """Key of the weights."""
        return self.ref.bare_weights_key if self.schema == 1 else self.ref.weights_key

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all objects that the version consists of."""
        described = {self.weights_key, self.ref.manifest_key}
        return frozenset(described if self.schema == 1 else described | {self.ref.config_key})

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Parses strictly.

        Raises:
            AdapterCorrupt: The bytes are not a manifest of a known schema. The message names fields, never values.
        """
        try:
            return _JSON.validate_json(data)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            reasons = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}" for fault in faults[:5]
            )
            raise AdapterCorrupt(f"the manifest does not parse: {reasons}") from None
        except InvalidField as error:
            raise AdapterCorrupt(f"the manifest does not parse: {error}") from None

    def describes(self, weights: bytes) -> bool:
        """Whether these are the weights that were published; hashes them, which takes milliseconds per MB."""
        return len(weights) == self.size_bytes and sha256(weights).hexdigest() == self.sha256

    def to_json(self) -> bytes:
        """Returns the JSON that `from_json` reads, indented for people who look into a bucket."""
        return _JSON.dump_json(self, indent=2, exclude_defaults=True)


_JSON = TypeAdapter(Manifest)
