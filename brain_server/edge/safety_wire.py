"""From the verdicts of screening to the messages of `aivo.safety.v1`."""

from aivo.safety.v1 import safety_pb2 as pb

from brain_server.safety.screening import calls_for_alert
from brain_server.safety.verdict import SafetyVerdict
from mesh.alerts.wire import action_from, probabilities_from, text_from


def report_from(verdict: SafetyVerdict | None) -> pb.SafetyReport | None:
    """Converts what screening found; None if nothing was screened."""
    if verdict is None:
        return None
    return pb.SafetyReport(
        action=action_from(verdict.action),
        categories=probabilities_from((finding.category, finding.probability) for finding in verdict.findings),
        text=text_from(verdict.text.name),
        guard=verdict.guard,
        alert=calls_for_alert(verdict),
    )
