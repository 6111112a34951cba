"""Writes the feedback for a verdict: the student's own adapter does, else the Main Brain.

The Main Brain writes as it answers prompts: where the student has no adapter that can be used. It also writes where the
adapter is broken, repeats itself however it is sampled, or says the opposite of the verdict.
"""

from dataclasses import dataclass, replace

from brain_server.assess import feedback
from brain_server.assess.grading import Level
from brain_server.engine.contract import (
    AdapterPolicy,
    Engine,
    Fallback,
    FinishReason,
    Generation,
    Reply,
    Sampling,
    complete,
)
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    DeadlineExceeded,
    InvalidField,
    ModelVersionNotFound,
    ResourceExhausted,
    Violation,
)
from mesh.lm.chat import Prompt
from mesh.lm.feedback import Feedback
from mesh.log import get_logger
from mesh.tutoring.judgement import contradicts

# The field of a request that is most of a prompt.
ANSWER_FIELD = "student_response"

# How the feedback is sampled: greedily, then with more and more chance while it repeats itself.
_TEMPERATURES = (0.0, 0.6, 0.9)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackDraft:
    """Feedback as it was written.

    Attributes:
        feedback: The texts; a sentence may occur twice.
        reply: How they came to be.
        is_contrary: Whether a student's adapter wrote the opposite of the verdict.
    """

    feedback: Feedback
    reply: Reply
    is_contrary: bool

    @property
    def is_fit(self) -> bool:
        """Whether it can be sent as it is."""
        return not self.is_contrary and not feedback.repeats_itself(self.feedback)


class FeedbackWriter:
    """Has feedback written. Raises as the methods of `Engine` that decode do, but for what is wrong with adapters."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def write(
        self, prompt: Prompt, level: Level, *, student_id: str | None, deadline: float | None
    ) -> FeedbackDraft:
        """Returns feedback that does not contradict the verdict if an adapter wrote it.

        Args:
            prompt: The request for feedback; it contains the verdict.
            level: The level that the verdict is part of.
            student_id: The student whose adapter writes; None for the Main Brain.
            deadline: When the work must end, in `time.monotonic()` seconds; None for never.

        Raises:
            InvalidField: The answer leaves no room for feedback.
        """
        generation = Generation(
            prompt=prompt, student_id=student_id, json_schema=feedback.schema_for(level), deadline=deadline
        )
        try:
            draft = await self._best_draft(generation, level)
        except (AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound) as error:
            # The verdict stands without the adapter, so it is not withheld. Who can repair the adapter reads the log.
            _log.warning("feedback_adapter_broken", student_id=student_id, reason=str(error))
            return await self._by_main_brain(generation, level, Fallback.ADAPTER_BROKEN)
        if draft.reply.adapter is None or draft.is_fit:
            return draft
        try:
            return await self._by_main_brain(generation, level, Fallback.FEEDBACK_REJECTED)
        except (DeadlineExceeded, ResourceExhausted):
            if draft.is_contrary:
                raise
            return draft

    async def _by_main_brain(self, generation: Generation, level: Level, reason: Fallback) -> FeedbackDraft:
        # With the student's id, so that the student's calls keep their share of the engine.
        draft = await self._best_draft(replace(generation, policy=AdapterPolicy.BASE_ONLY), level)
        return replace(draft, reply=replace(draft.reply, fallback=reason))

    async def _best_draft(self, generation: Generation, level: Level) -> FeedbackDraft:
        """Writes until the feedback repeats nothing or contradicts the verdict, at most once per temperature."""
        draft = await self._draft(generation, level, _TEMPERATURES[0])
        for temperature in _TEMPERATURES[1:]:
            if draft.is_contrary or draft.is_fit:
                break
            try:
                draft = await self._draft(generation, level, temperature)
            except (DeadlineExceeded, ResourceExhausted):
                # What repeats itself is better than nothing, and its repeats are left out.
                break
        return draft

    async def _draft(self, generation: Generation, level: Level, temperature: float) -> FeedbackDraft:
        # The seed makes the same answer get the same feedback, at any temperature.
        sampling = Sampling(temperature=temperature, seed=0, max_tokens=feedback.MAX_TOKENS)
        reply = await complete(self._engine, replace(generation, sampling=sampling))
        if reply.finish_reason is FinishReason.LENGTH:
            # A schema is met in any room that the shortest document fits.
            raise InvalidField([Violation(ANSWER_FIELD, "leaves no room for feedback together with its criteria")])
        comments = feedback.parse(reply.text)
        is_contrary = reply.adapter is not None and contradicts(comments.feedback, level.verdict)
        return FeedbackDraft(feedback=comments, reply=reply, is_contrary=is_contrary)
