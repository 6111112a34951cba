"""The Main Brain as an engine reports it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.main_brain.files import MainBrainFiles
from mesh.main_brain.roles import RoleManifest, RoleName

# How facts and replies name a Main Brain without a tutor, one without a grader, and one without a guard.
NO_TUTOR, ZERO_SHOT, RULES = "none", "zero-shot", "rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class MainBrainFacts:
    """The Main Brain that answers, for health checks.

    Attributes:
        digest: Its identity, 64 hex digits; students' adapters belong to it.
        tutor: `lora:` and the sha256 of the tutor's weights; `none` if nothing is merged into the base model.
        grader: `lora:` and the sha256 of the grader's weights; `zero-shot` if the Main Brain itself grades.
        guard: `lora:` and the sha256 of the guard's weights; `rules` if rules alone screen texts.
        roles: The roles that `Engine.weigh` may name, with their labels and calibration.
        problems: Why a role that is there is not used, one sentence each.
    """

    digest: str
    tutor: str
    grader: str
    guard: str = RULES
    roles: Mapping[RoleName, RoleManifest] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: MainBrainFiles) -> "MainBrainFacts":
        """Returns the facts of these files."""
        return cls(
            digest=files.digest,
            tutor=files.tutor.identity if files.tutor else NO_TUTOR,
            grader=files.grader.identity if files.grader else ZERO_SHOT,
            guard=files.guard.identity if files.guard else RULES,
            roles={role.manifest.role: role.manifest for role in files.side_roles},
            problems=files.problems,
        )
