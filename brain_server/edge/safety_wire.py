"""Between the messages of `aivo.safety.v1` and the domain, both ways."""

from collections.abc import Iterable, Mapping

from aivo.safety.v1 import safety_pb2 as pb

from brain_server.safety.screening import calls_for_alert
from brain_server.safety.verdict import SafetyAction, SafetyCategory, SafetyVerdict, TextKind

_CATEGORIES: Mapping[SafetyCategory, pb.SafetyCategory.ValueType] = {
    SafetyCategory.SELF_HARM: pb.SAFETY_CATEGORY_SELF_HARM,
    SafetyCategory.VIOLENCE: pb.SAFETY_CATEGORY_VIOLENCE,
    SafetyCategory.SEXUAL: pb.SAFETY_CATEGORY_SEXUAL,
    SafetyCategory.DRUGS: pb.SAFETY_CATEGORY_DRUGS,
    SafetyCategory.HATE: pb.SAFETY_CATEGORY_HATE,
    SafetyCategory.DANGER: pb.SAFETY_CATEGORY_DANGER,
    SafetyCategory.PERSONAL_DATA: pb.SAFETY_CATEGORY_PERSONAL_DATA,
    SafetyCategory.PROFANITY: pb.SAFETY_CATEGORY_PROFANITY,
}
_ACTIONS: Mapping[SafetyAction, pb.SafetyAction.ValueType] = {
    SafetyAction.ALLOW: pb.SAFETY_ACTION_ALLOW,
    SafetyAction.CAREFUL: pb.SAFETY_ACTION_CAREFUL,
    SafetyAction.REFUSE: pb.SAFETY_ACTION_REFUSE,
    SafetyAction.SUPPORT: pb.SAFETY_ACTION_SUPPORT,
}
_TEXTS: Mapping[TextKind, pb.ScreenedText.ValueType] = {
    TextKind.PROMPT: pb.SCREENED_TEXT_PROMPT,
    TextKind.HISTORY: pb.SCREENED_TEXT_HISTORY,
    TextKind.REPLY: pb.SCREENED_TEXT_REPLY,
}


def report_from(verdict: SafetyVerdict | None) -> pb.SafetyReport | None:
    """Converts what screening found; None if nothing was screened."""
    if verdict is None:
        return None
    return pb.SafetyReport(
        action=_ACTIONS[verdict.action],
        categories=probabilities_from((finding.category, finding.probability) for finding in verdict.findings),
        text=_TEXTS[verdict.text],
        guard=verdict.guard,
        alert=calls_for_alert(verdict),
    )


def probabilities_from(
    probabilities: Iterable[tuple[SafetyCategory, float]],
) -> list[pb.CategoryProbability]:
    """Converts probabilities of categories, in their order."""
    return [
        pb.CategoryProbability(category=_CATEGORIES[category], probability=round(probability, 4))
        for category, probability in probabilities
    ]


def action_from(action: SafetyAction) -> pb.SafetyAction.ValueType:
    """Converts an action."""
    return _ACTIONS[action]
