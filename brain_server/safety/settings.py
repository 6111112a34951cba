"""Settings of the safety agent."""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from brain_server.safety.rules import ALL_RULES, RuleName
from mesh.lm.guarding import HarmCategory
from mesh.settings import Settings

SafetyMode = Literal["enforce", "monitor", "off"]


class SafetySettings(Settings):
    """What is screened, and what follows."""

    # `monitor` screens and tells adults, and blocks nothing. `off` screens nothing and costs nothing.
    safety: SafetyMode = "enforce"
    # Whether a call fails if the guard cannot judge it; otherwise the rules alone decide then, and the reply says so.
    safety_required: bool = False
    safety_rules: Annotated[tuple[RuleName, ...], NoDecode] = ALL_RULES
    # By category, in place of those in the guard's manifest, for all grades.
    safety_thresholds: dict[HarmCategory, Annotated[float, Field(gt=0, le=1)]] = Field(default={})
    # A loaded batch on two cores reads a prompt of 600 characters in less than two seconds.
    safety_timeout_seconds: float = Field(default=10, gt=0)
    # What a support reply points to, as it is said: "call or text 988".
    safety_help_line: str = Field(default="call or text 988", min_length=1, max_length=200)

    @field_validator("safety_rules", mode="before")
    @classmethod
    def _split_rules(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
