"""Settings of the safety agent."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from brain_server.safety.rules import ALL_RULES, RuleName
from mesh.lm.guarding import HarmCategory
from mesh.settings import Settings

SafetyMode = Literal["enforce", "monitor", "off"]


class SafetySettings(Settings):
    """What is screened, and what follows."""

    # `monitor` screens and tells adults, and blocks and delays nothing. `off` screens nothing and takes no time; the
    # guard's weights and rows stay in memory.
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

    # Whether alerts keep what was written. Adults may need it, and it is a child's most private words.
    safety_keep_text: bool = False
    # Days that an alert stays after its last finding. `RETENTION_DAYS` and a student's deletion remove it earlier.
    safety_alert_days: float = Field(default=90, gt=0)
    # Where new alerts are sent, beside the stream, and the secret that signs them.
    safety_webhook_url: str | None = Field(default=None, pattern=r"^https?://.+")
    safety_webhook_secret: SecretStr | None = None
    # Longest silence of a stream of alerts. The contract promises a heartbeat at least every 15 seconds.
    heartbeat_seconds: float = Field(default=10, gt=0, le=15)

    @model_validator(mode="after")
    def _webhook_is_signed(self) -> Self:
        if self.safety_webhook_url and not (
            self.safety_webhook_secret and self.safety_webhook_secret.get_secret_value()
        ):
            raise ValueError("SAFETY_WEBHOOK_SECRET must be set with SAFETY_WEBHOOK_URL")
        return self

    @field_validator("safety_rules", mode="before")
    @classmethod
    def _split_rules(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
