"""Screens texts: the guard judges, rules beside it, and a verdict says what is done.

Fail safe: where the guard can't judge, the rules decide alone and the verdict names them, or the call is refused.
Knows neither gRPC nor torch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from brain_server.engine.main_brain import RULES
from brain_server.safety.guard import GuardJudgement, GuardReader, GuardUnavailable
from brain_server.safety.pleas import is_plea
from brain_server.safety.rules import SafetyRules, SpokenText
from brain_server.safety.verdict import (
    Finding,
    SafetyAction,
    SafetyCategory,
    SafetyVerdict,
    TextKind,
    merge_verdicts,
)
from mesh.errors import SafetyUnavailable
from mesh.lm.guarding import HarmCategory

# What an adult is told of. Personal data and bad language are not.
_ALERTING = frozenset(SafetyCategory) - {SafetyCategory.PERSONAL_DATA, SafetyCategory.PROFANITY}


def calls_for_alert(verdict: SafetyVerdict) -> bool:
    """Returns whether an adult is told of a text."""
    return any(finding.action >= SafetyAction.REFUSE and finding.category in _ALERTING for finding in verdict.findings)


class Screener:
    """Screens texts.

    Attributes:
        is_guard_required: Whether a text that the guard can't judge is an error.
    """

    def __init__(
        self,
        guard: GuardReader,
        *,
        rules: SafetyRules,
        is_guard_required: bool,
        observe: Callable[[SafetyVerdict], None] = lambda _: None,
    ) -> None:
        """Takes the guard, rules that judge beside it, and a function for every verdict, for metrics."""
        self.is_guard_required = is_guard_required
        self._guard = guard
        self._rules = rules
        self._observe = observe

    async def screen(
        self, spoken: SpokenText, kind: TextKind, *, grade: str | None, deadline: float | None = None
    ) -> SafetyVerdict:
        """Returns the verdict on one text.

        Args:
            spoken: The text.
            kind: Which text of a call it is.
            grade: The student's, one of `mesh.tutoring.profile.GRADES`; None if unknown.
            deadline: When the caller stops waiting, in `time.monotonic()` seconds; None for never.

        Raises:
            SafetyUnavailable: The guard is required and can't judge, and the rules find no harm.
            DeadlineExceeded: The caller's deadline passed.
        """
        findings = list(self._rules.find(spoken))
        readable = replace(spoken, text=self._rules.readable(spoken.text))
        try:
            judgement = await self._guard.read(readable, grade=grade, deadline=deadline)
        except GuardUnavailable:
            if self.is_guard_required and not any(finding.action >= SafetyAction.REFUSE for finding in findings):
                raise SafetyUnavailable from None
            verdict = _verdict(kind, findings, guard=RULES)
        else:
            verdict = _judged(kind, findings, judgement, readable)
        self._observe(verdict)
        return verdict


def _judged(
    kind: TextKind, findings: Sequence[Finding], judgement: GuardJudgement, spoken: SpokenText
) -> SafetyVerdict:
    guard_findings = [
        Finding(
            category=SafetyCategory(category),
            probability=judgement.probabilities[category],
            action=_action_for(category, spoken),
        )
        for category in judgement.flagged
    ]
    verdict = _verdict(kind, [*findings, *guard_findings], guard=judgement.guard)
    probabilities = {SafetyCategory(category): p for category, p in judgement.probabilities.items()}
    return replace(
        verdict,
        harm=max(verdict.harm, judgement.harm),
        probabilities={**probabilities, **_highest(verdict.findings, probabilities)},
    )


def _action_for(category: HarmCategory, spoken: SpokenText) -> SafetyAction:
    if category is HarmCategory.SELF_HARM or (spoken.by_student and is_plea(spoken.text)):
        return SafetyAction.SUPPORT
    return SafetyAction.REFUSE


def _verdict(kind: TextKind, findings: Sequence[Finding], *, guard: str) -> SafetyVerdict:
    if any(finding.is_harm for finding in findings):
        # Who is sad and in danger is met as one in danger.
        findings = [finding for finding in findings if finding.category is not SafetyCategory.DISTRESS]
    # Merging keeps the likeliest finding of each category, the highest action first.
    verdicts = [
        SafetyVerdict(
            text=kind,
            findings=(finding,),
            harm=finding.probability if finding.is_harm else 0.0,
            probabilities={finding.category: finding.probability},
            guard=guard,
        )
        for finding in findings
    ]
    return merge_verdicts(verdicts) if verdicts else SafetyVerdict(text=kind, guard=guard)


def _highest(findings: Iterable[Finding], probabilities: dict[SafetyCategory, float]) -> dict[SafetyCategory, float]:
    return {
        finding.category: max(finding.probability, probabilities.get(finding.category, 0.0)) for finding in findings
    }
