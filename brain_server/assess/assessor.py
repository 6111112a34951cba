"""Assesses an answer: how correct it is, and feedback to the student.

The verdict comes from code where numbers decide, else from the grader: the probabilities of its labels, calibrated. A
Main Brain without a grader weighs the labels zero-shot. The student's own adapter then writes the feedback for that
verdict, else the Main Brain does. The same answer gets the same verdict from every student. The same adapter writes the
same feedback on it, unless time or room runs out.

Knows neither gRPC nor torch.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from brain_server.assess import feedback, grading
from brain_server.assess.arithmetic import decide_by_arithmetic
from brain_server.assess.grading import Level, Probabilities
from brain_server.assess.writer import ANSWER_FIELD, FeedbackWriter
from brain_server.engine.contract import Engine, Reply
from brain_server.engine.main_brain import NO_TUTOR, ZERO_SHOT, MainBrainFacts
from mesh.errors import InvalidField, ModelNotLoaded
from mesh.lm.chat import Prompt
from mesh.lm.feedback import Feedback
from mesh.lm.grading import LABELS, grader_prompt, ordered
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.overlap import overlap_of
from mesh.tutoring.profile import StudentProfile

# How verdicts name code that compared numbers.
ARITHMETIC = "arithmetic"

# Criteria whose anchors are cached, some kB each: a class answers the same questions at about the same time.
_MAX_CACHED_CRITERIA = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """An answer to assess.

    Attributes:
        answer: The text that the student wrote.
        criteria: What to judge it by.
        profile: The student's profile; shapes the words of the feedback, never the verdict.
        student_id: The student whose adapter writes the feedback; None for the Main Brain.
    """

    answer: str
    criteria: Criteria
    profile: StudentProfile
    student_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """How correct an answer is.

    Attributes:
        probabilities: Probabilities of the labels.
        grader: What graded: `arithmetic`, `zero-shot`, or `lora:` and the sha256 of the grader's weights.
    """

    probabilities: Probabilities
    grader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of an assessment.

    Attributes:
        grade: How correct the answer is.
        feedback: Feedback to the student.
        reply: How the feedback came to be: which adapter wrote it, or why the Main Brain did.
    """

    grade: Grade
    feedback: Feedback
    reply: Reply

    @property
    def correctness(self) -> float:
        """The score, 0 to 100."""
        return self.grade.probabilities.correctness

    @property
    def level(self) -> Level:
        """The level that follows from the score."""
        return Level.of(self.correctness)

    @property
    def tokens(self) -> int:
        """Tokens of the feedback, prompt included."""
        return self.reply.prompt_tokens + self.reply.completion_tokens


class Assessor:
    """Grades answers with the Main Brain, and has the student's own adapter write the feedback for that verdict.

    No student's adapter takes part in a verdict, so that all students are judged alike.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = FeedbackWriter(engine)
        self._anchor_weights: OrderedDict[tuple[str, Criteria], Sequence[Mapping[str, float]]] = OrderedDict()

    async def assess(self, assessment: Assessment, *, deadline: float | None = None) -> Verdict:
        """Returns the verdict with its feedback.

        Raises:
            InvalidField: Answer and criteria are too long for the model; names the answer.
            AivoError: As the methods of `Engine` that decode do.
        """
        with _naming_the_answer():
            return await self._assess(assessment, deadline=deadline)

    async def _assess(self, assessment: Assessment, *, deadline: float | None) -> Verdict:
        grade = await self.grade(assessment.answer, assessment.criteria, deadline=deadline)
        level = Level.of(grade.probabilities.correctness)
        prompt = self._feedback_prompt(assessment, level)
        draft = await self._writer.write(prompt, level, student_id=assessment.student_id, deadline=deadline)
        return Verdict(grade=grade, feedback=feedback.without_repeats(draft.feedback), reply=draft.reply)

    async def grade(self, answer: str, criteria: Criteria, *, deadline: float | None = None) -> Grade:
        """Returns how correct an answer is. Raises as `assess` does."""
        verdict = decide_by_arithmetic(answer, criteria)
        if verdict is not None:
            return Grade(probabilities=Probabilities.decided(verdict), grader=ARITHMETIC)
        main_brain = self._engine.facts.main_brain
        if main_brain is not None and "grader" in main_brain.roles:
            try:
                return await self._grade_with(main_brain, answer, criteria, deadline=deadline)
            except ModelNotLoaded:
                # The engine has just found that it can't use the grader, and leaves it out from now on.
                pass
        return Grade(probabilities=await self._grade_zero_shot(answer, criteria, deadline=deadline), grader=ZERO_SHOT)

    async def _grade_with(
        self, main_brain: MainBrainFacts, answer: str, criteria: Criteria, *, deadline: float | None
    ) -> Grade:
        prompt = grader_prompt(answer, criteria)
        weights = ordered(await self._engine.weigh(prompt, LABELS, role="grader", deadline=deadline))
        calibration = main_brain.roles["grader"].calibration
        if calibration:
            weights = calibration.apply(weights, overlap_of(answer, criteria))
        correct, partially_correct, incorrect = weights
        probabilities = Probabilities(correct=correct, partially_correct=partially_correct, incorrect=incorrect)
        return Grade(probabilities=probabilities, grader=main_brain.grader)

    async def _grade_zero_shot(self, answer: str, criteria: Criteria, *, deadline: float | None) -> Probabilities:
        anchors = await self._anchors(criteria, deadline=deadline)
        weights = await self._engine.weigh(grading.prompt_for(answer, criteria), LABELS, deadline=deadline)
        return Probabilities.calibrated(weights, anchors=anchors)

    def _feedback_prompt(self, assessment: Assessment, level: Level) -> Prompt:
        main_brain = self._engine.facts.main_brain
        return feedback.prompt_for(
            assessment.answer,
            assessment.criteria,
            level=level,
            profile=assessment.profile,
            with_example=main_brain is None or main_brain.tutor == NO_TUTOR,
        )

    async def _anchors(self, criteria: Criteria, *, deadline: float | None) -> Sequence[Mapping[str, float]]:
        """Returns the model's weights for the answers that show its bias, from the cache if they are in it."""
        # By model: until one is loaded, `facts` names the configured one, but the fallback may answer.
        key = (self._engine.facts.model, criteria)
        anchors = self._anchor_weights.get(key)
        if anchors is None:
            prompts = [grading.prompt_for(answer, criteria) for answer in grading.anchors_of(criteria)]
            anchors = [await self._engine.weigh(prompt, LABELS, deadline=deadline) for prompt in prompts]
            self._anchor_weights[key] = anchors
            if len(self._anchor_weights) > _MAX_CACHED_CRITERIA:
                self._anchor_weights.popitem(last=False)
        self._anchor_weights.move_to_end(key)
        return anchors


@contextmanager
def _naming_the_answer() -> Iterator[None]:
    """Has errors on a prompt name the answer: an engine knows of prompts alone, and who calls knows of none."""
    try:
        yield
    except InvalidField as error:
        violations = [
            replace(violation, field=ANSWER_FIELD) if violation.field == "prompt" else violation
            for violation in error.violations
        ]
        raise InvalidField(violations) from None
