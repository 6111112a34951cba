"""Assessments that are screened: the answer, and the feedback on it.

The verdict on the answer stands whatever is found; only the feedback is replaced. Knows neither gRPC nor torch.
"""

import asyncio
from dataclasses import dataclass, replace

from brain_server.assess.assessor import Assessment, Assessor, Verdict
from brain_server.engine.contract import Fallback
from brain_server.safety.agent import SafetyAgent
from brain_server.safety.rules import SpokenText
from brain_server.safety.verdict import SafetyVerdict, TextKind, merge_verdicts
from mesh.lm.feedback import Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenedAssessment:
    """A verdict on an answer, and what screening found; None if nothing is screened."""

    verdict: Verdict
    safety: SafetyVerdict | None


class ScreenedAssessor:
    """Assesses answers as an `Assessor` does.

    Args:
        assessor: Assesses.
        agent: Says what is screened, and what is sent in place of harmful feedback.
    """

    def __init__(self, assessor: Assessor, agent: SafetyAgent) -> None:
        self._assessor = assessor
        self._agent = agent

    async def assess(self, assessment: Assessment, *, deadline: float | None, request_id: str) -> ScreenedAssessment:
        """Returns the verdict. Raises as `Assessor.assess` and `Screener.screen` do."""
        if self._agent.mode == "off":
            return ScreenedAssessment(verdict=await self._assessor.assess(assessment, deadline=deadline), safety=None)
        assessing = asyncio.create_task(self._assessor.assess(assessment, deadline=deadline))
        try:
            answer = SpokenText(text=assessment.answer, by_student=True)
            answer_verdict = await self._screen(answer, TextKind.PROMPT, assessment, deadline, request_id)
            verdict = await assessing
        finally:
            assessing.cancel()
            await asyncio.wait((assessing,))
        if self._agent.blocks(answer_verdict):
            return self._replaced(verdict, answer_verdict, assessment, [answer_verdict])
        feedback = SpokenText(text=_words(verdict.feedback), by_student=False, answers=_context_of(assessment))
        feedback_verdict = await self._screen(feedback, TextKind.REPLY, assessment, deadline, request_id)
        verdicts = [answer_verdict, feedback_verdict]
        if self._agent.blocks(feedback_verdict):
            return self._replaced(verdict, feedback_verdict, assessment, verdicts)
        return ScreenedAssessment(verdict=verdict, safety=merge_verdicts(verdicts))

    async def _screen(
        self, spoken: SpokenText, kind: TextKind, assessment: Assessment, deadline: float | None, request_id: str
    ) -> SafetyVerdict:
        verdict = await self._agent.screener.screen(spoken, kind, grade=_grade_of(assessment), deadline=deadline)
        self._agent.flag(verdict, spoken.text, student_id=assessment.student_id, request_id=request_id)
        return verdict

    def _replaced(
        self, verdict: Verdict, cause: SafetyVerdict, assessment: Assessment, verdicts: list[SafetyVerdict]
    ) -> ScreenedAssessment:
        text = self._agent.replies.pick(cause, grade=_grade_of(assessment), in_feedback=True)
        feedback = Feedback(feedback=text, strengths=(), areas_for_improvement=(), next_steps="")
        reply = replace(verdict.reply, adapter=None, fallback=Fallback.SAFETY)
        return ScreenedAssessment(
            verdict=replace(verdict, feedback=feedback, reply=reply), safety=merge_verdicts(verdicts)
        )


def _grade_of(assessment: Assessment) -> str | None:
    return assessment.profile.grade or assessment.criteria.grade


def _words(feedback: Feedback) -> str:
    texts = (feedback.feedback, *feedback.strengths, *feedback.areas_for_improvement, feedback.next_steps)
    return " ".join(filter(None, texts))


def _context_of(assessment: Assessment) -> str:
    return f"{assessment.answer}\n{assessment.criteria.described}"
