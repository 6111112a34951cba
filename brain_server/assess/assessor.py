"""Assesses an answer: how correct it is, and feedback to the student.

It takes two requests to the base model. The verdict comes from the probabilities of its labels, as a score that a
model writes as text would mean little. The feedback is then written for that verdict. Decoding is greedy: the same
answer gets the same verdict.

Knows neither gRPC nor torch.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brain_server.assess import feedback, grading
from brain_server.assess.feedback import Feedback
from brain_server.assess.grading import LABELS, Criteria, Level, Probabilities
from brain_server.engine.contract import AdapterPolicy, Engine, Generation, Sampling, complete
from mesh.tutoring.profile import StudentProfile

# Criteria whose anchors are cached, some kB each: a class answers the same questions at about the same time.
_MAX_CACHED_CRITERIA = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """An answer to assess.

    Attributes:
        answer: The text that the student wrote.
        criteria: What to judge it by.
        profile: The student's profile; shapes the words of the feedback, never the verdict.
    """

    answer: str
    criteria: Criteria
    profile: StudentProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of an assessment.

    Attributes:
        probabilities: Probabilities of the labels.
        feedback: Feedback to the student.
        model: Name of the base model.
        tokens: Tokens of the feedback, prompt included.
    """

    probabilities: Probabilities
    feedback: Feedback
    model: str
    tokens: int

    @property
    def correctness(self) -> float:
        """The score, 0 to 100."""
        return self.probabilities.correctness

    @property
    def level(self) -> Level:
        """The level that follows from the score."""
        return Level.of(self.correctness)


class Assessor:
    """Assesses answers with the base model, never with an adapter, so that all students are judged alike."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._anchor_weights: OrderedDict[tuple[str, Criteria], Sequence[Mapping[str, float]]] = OrderedDict()

    async def assess(self, assessment: Assessment, *, deadline: float | None = None) -> Verdict:
        """Returns the verdict with its feedback.

        Raises:
            AivoError: As the methods of `Engine` that decode do.
        """
        probabilities = await self.grade(assessment.answer, assessment.criteria, deadline=deadline)
        level = Level.of(probabilities.correctness)
        generation = Generation(
            prompt=feedback.prompt_for(assessment.answer, assessment.criteria, level=level, profile=assessment.profile),
            policy=AdapterPolicy.BASE_ONLY,
            sampling=Sampling(temperature=0.0, max_tokens=feedback.MAX_TOKENS),
            json_schema=feedback.schema_for(level),
            deadline=deadline,
        )
        reply = await complete(self._engine, generation)
        return Verdict(
            probabilities=probabilities,
            feedback=feedback.parse(reply.text),
            model=reply.model,
            tokens=reply.prompt_tokens + reply.completion_tokens,
        )

    async def grade(self, answer: str, criteria: Criteria, *, deadline: float | None = None) -> Probabilities:
        """Returns the probabilities of the labels. Raises as `assess` does."""
        anchors = await self._anchors(criteria, deadline=deadline)
        weights = await self._engine.weigh(grading.prompt_for(answer, criteria), LABELS, deadline=deadline)
        return Probabilities.calibrated(weights, anchors=anchors)

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
