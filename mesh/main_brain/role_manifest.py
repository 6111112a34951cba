"""The manifest of a role: how it was trained and what it fits; and the model card that follows from it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mesh.adapters.manifest import Digest, Lora, Serving
from mesh.errors import AdapterCorrupt
from mesh.lm.guarding import HarmCategory, thresholds_of_grade
from mesh.tutoring.profile import GradeBand

RoleName = Literal["tutor", "grader", "guard"]

# Otherwise a label that is never likely would have an infinite logarithm.
_LEAST_WEIGHT = 1e-6

# Above 0, as a threshold of 0 would flag every text.
_Threshold = Annotated[float, Field(gt=0, le=1)]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

_PURPOSES: dict[RoleName, str] = {
    "tutor": "It teaches the base model to tutor pupils of grades K-12. AIVO merges it into the base weights.",
    "grader": "It judges a pupil's answer: its reply begins with one of its labels. It runs on the Main Brain.",
    "guard": "It judges whether a text is safe for pupils: its reply begins with one of its labels. It runs on the "
    "Main Brain.",
}


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Calibration:
    """Turns a role's probabilities of its labels into calibrated ones: a multinomial logistic regression.

    It is fitted on held-out data. Platt, "Probabilistic Outputs for Support Vector Machines" (1999); Guo et al., "On
    Calibration of Modern Neural Networks" (2017).

    Attributes:
        scale: Factor of the logarithm of each probability; the inverse of a temperature.
        biases: Added for each label, in the order of the labels.
        slopes: For each label, the factor of each feature that is known beside the model's reading; empty for none.
    """

    scale: Annotated[float, Field(ge=0)]
    biases: tuple[float, ...]
    slopes: tuple[tuple[float, ...], ...] = ()

    def apply(self, weights: Sequence[float], features: Sequence[float] = ()) -> list[float]:
        """Returns calibrated probabilities, in the order of the weights.

        Args:
            weights: The probability of each label.
            features: As many as each label has slopes; without slopes they change nothing.
        """
        slopes = self.slopes or ((0.0,) * len(features),) * len(self.biases)
        scores = [
            self.scale * math.log(max(weight, _LEAST_WEIGHT))
            + bias
            + math.fsum(slope * feature for slope, feature in zip(row, features, strict=True))
            for weight, bias, row in zip(weights, self.biases, slopes, strict=True)
        ]
        highest = max(scores)
        ratios = [math.exp(score - highest) for score in scores]
        return [ratio / math.fsum(ratios) for ratio in ratios]


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class RoleManifest:
    """How a role was trained and what it fits. JSON, parsed strictly.

    Attributes:
        schema: Version of the document's format.
        role: What the adapter does.
        base_model: Name of the base model.
        base_digest: Digest of what it was trained on, lower-case hex: the base weights for the tutor, the Main Brain
            for the others. It fits only these.
        lora: Shape of the factors.
        sha256: Digest of the weights file, lower-case hex.
        size_bytes: Size of the weights file.
        created_time: Time when training ended, UTC.
        seed: Seed of data order and initial factors.
        command: The command that trained it; the model card says what else is needed to do so again.
        labels: What a grader or guard begins its reply with, in order; empty for the tutor.
        calibration: How the probabilities of the labels are calibrated; None takes them as they are.
        thresholds: The least score of each category at which a guard's text is flagged, by grade band; None for other
            roles. See `HarmReading.flagged`.
        serving: How the Main Brain's replies are decoded with this tutor; None as the engines do by default.
        evaluation: Figures measured on held-out data, by name.
        data_digests: sha256 of each data set that it learned from, by name.
    """

    schema: Literal[1] = 1
    role: RoleName
    base_model: Annotated[str, Field(min_length=1, max_length=256)]
    base_digest: Digest
    lora: Lora
    sha256: Digest
    size_bytes: Annotated[int, Field(ge=1)]
    created_time: AwareDatetime
    seed: int
    command: str
    labels: tuple[str, ...] = ()
    calibration: Calibration | None = None
    thresholds: dict[HarmCategory, dict[GradeBand, _Threshold]] | None = None
    serving: Serving | None = None
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    data_digests: dict[str, Digest] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.role == "tutor") != (self.labels == ()):
            raise ValueError("labels must be set for grader and guard, and only for them")
        if self.serving is not None and self.role != "tutor":
            raise ValueError("serving is the tutor's alone")
        if self.thresholds is not None and self.role != "guard":
            raise ValueError("thresholds are the guard's alone")
        if self.thresholds is not None and not _is_complete(self.thresholds):
            raise ValueError("thresholds must have one number per category and grade band")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ")
        calibration = self.calibration
        if calibration is not None and len(calibration.biases) != len(self.labels):
            raise ValueError("calibration.biases must have one number per label")
        if calibration is not None and len(calibration.slopes) not in {0, len(self.labels)}:
            raise ValueError("calibration.slopes must have one row per label")

    @classmethod
    def from_json(cls, data: bytes) -> "RoleManifest":
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

    def to_json(self) -> bytes:
        """Returns the JSON that `from_json` reads, indented for people."""
        return _JSON.dump_json(self, indent=2)

    def thresholds_for(self, grade: str | None) -> Mapping[HarmCategory, float]:
        """Returns a guard's threshold of each category for a student's grade; the lowest of all if it is unknown.

        Raises:
            ValueError: The role has no thresholds.
        """
        if self.thresholds is None:
            raise ValueError(f"the {self.role} has no thresholds")
        return thresholds_of_grade(self.thresholds, grade)

    @property
    def scaling(self) -> float:
        """The factor on the product of A and B: `alpha / rank`."""
        return self.lora.alpha / self.lora.rank


_JSON = TypeAdapter(RoleManifest)


def _is_complete(thresholds: Mapping[HarmCategory, Mapping[GradeBand, float]]) -> bool:
    bands = set(GradeBand)
    return set(thresholds) == set(HarmCategory) and all(set(row) == bands for row in thresholds.values())


def model_card(manifest: RoleManifest, notes: str) -> str:
    """Returns the model card as Markdown, with the notes at its end."""
    lora = manifest.lora
    lines = [
        "---", f"base_model: {manifest.base_model}", "library_name: peft", "language: en", "---",
        f"# AIVO {manifest.role} for {manifest.base_model}", "",
        _PURPOSES[manifest.role], "",
        f"- Trained on weights with the digest `{manifest.base_digest}`; it fits no others.",
        f"- LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.target_modules)}.",
        f"- SHA-256 of its weights: `{manifest.sha256}`.",
        f"- Trained with `{manifest.command}`, seed {manifest.seed}.",
    ]  # fmt: skip
    if manifest.labels:
        lines += [f"- Labels, in order: {', '.join(f'`{label.strip()}`' for label in manifest.labels)}."]
    lines += [f"- Learned from {name}, SHA-256 `{digest}`." for name, digest in sorted(manifest.data_digests.items())]
    if manifest.thresholds:
        lines += ["", f"| flagged from | {' | '.join(GradeBand)} |", "| --- |" + " --- |" * len(GradeBand)]
        lines += [
            f"| {category} | {' | '.join(f'{row[band]:.3g}' for band in GradeBand)} |"
            for category, row in manifest.thresholds.items()
        ]
    if manifest.evaluation:
        lines += ["", "| measured on held-out data | |", "| --- | --- |"]
        lines += [f"| {name} | {figure:.4g} |" for name, figure in sorted(manifest.evaluation.items())]
    return "\n".join([*lines, *(["", notes.strip()] if notes.strip() else []), ""])
