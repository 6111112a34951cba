"""What screening says of a text: what it is about, what is done, and who decided.

Knows neither models nor gRPC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum, auto

from brain_server.engine.main_brain import RULES


class SafetyCategory(StrEnum):
    """What a harmful text is about. The guard knows the first six, rules know all."""

    SELF_HARM = "self_harm"
    VIOLENCE = "violence"
    SEXUAL = "sexual"
    DRUGS = "drugs"
    HATE = "hate"
    DANGER = "danger"
    PERSONAL_DATA = "personal_data"
    PROFANITY = "profanity"
    DISTRESS = "distress"


class SafetyAction(IntEnum):
    """What is done about a text. A higher action goes before a lower one."""

    ALLOW = 0
    # The text passes; callers learn what was found in it.
    CAREFUL = 1
    # A kind refusal takes the reply's place.
    REFUSE = 2
    # Kind words take the reply's place, and point to an adult; in danger, to the help line too.
    SUPPORT = 3


class TextKind(Enum):
    """Which text of a call a verdict is about."""

    PROMPT = auto()
    HISTORY = auto()
    REPLY = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something in a text that calls for an action.

    Attributes:
        category: What it is about.
        probability: How likely it is, 0 to 1; 1 where a rule found it.
        action: What it calls for.
    """

    category: SafetyCategory
    probability: float
    action: SafetyAction

    @property
    def is_harm(self) -> bool:
        """Whether it is of something harmful: that a child is sad calls for support, and is no harm."""
        return self.action >= SafetyAction.REFUSE and self.category is not SafetyCategory.DISTRESS


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyVerdict:
    """The outcome of screening.

    Attributes:
        text: Which text it is about; with findings in several, the one that calls for the highest action.
        findings: What calls for an action, the highest action first; empty for a text without harm.
        harm: How likely the text is harmful, whatever it is about, 0 to 1; for those who order texts by it.
        probabilities: The probability of each category that was judged.
        guard: Who judged: `lora:` and the sha256 of the guard's weights, or `rules` where it could not; empty for a
            text that needed no judgement.
    """

    text: TextKind
    findings: tuple[Finding, ...] = ()
    harm: float = 0.0
    probabilities: Mapping[SafetyCategory, float] = field(default_factory=dict)
    guard: str = RULES

    @property
    def action(self) -> SafetyAction:
        """The highest action that a finding calls for."""
        return max((finding.action for finding in self.findings), default=SafetyAction.ALLOW)

    @property
    def is_blocked(self) -> bool:
        """Whether the text must not pass."""
        return self.action >= SafetyAction.REFUSE

    @property
    def is_harmful(self) -> bool:
        """Whether something harmful was found."""
        return any(finding.is_harm for finding in self.findings)

    @property
    def category(self) -> SafetyCategory | None:
        """What the text is about most of all; None for a text without findings."""
        return self.findings[0].category if self.findings else None


def merge_verdicts(verdicts: Sequence[SafetyVerdict]) -> SafetyVerdict:
    """Returns one verdict on several texts, with the likeliest finding of each category.

    Names `rules` as the guard if it could not judge one of the texts. There must be at least one verdict.
    """
    findings: dict[SafetyCategory, Finding] = {}
    probabilities: dict[SafetyCategory, float] = {}
    for verdict in verdicts:
        for category, probability in verdict.probabilities.items():
            probabilities[category] = max(probability, probabilities.get(category, 0.0))
        for finding in verdict.findings:
            present = findings.get(finding.category, finding)
            findings[finding.category] = max(present, finding, key=_weight)
    gravest = max(verdicts, key=lambda verdict: verdict.action)
    guards = [verdict.guard for verdict in verdicts]
    return SafetyVerdict(
        text=gravest.text,
        findings=tuple(sorted(findings.values(), key=_weight, reverse=True)),
        harm=max(verdict.harm for verdict in verdicts),
        probabilities=probabilities,
        guard=RULES if RULES in guards else next(filter(None, guards), ""),
    )


def _weight(finding: Finding) -> tuple[SafetyAction, float]:
    return finding.action, finding.probability
