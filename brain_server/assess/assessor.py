"""Assessment: how right an answer is, and what to tell the student.

Two questions to the base model. The verdict is read off the probabilities of its labels, where a number that a model
writes would mean little. The feedback is then written for that verdict. Nothing is sampled: the same answer gets the
same verdict.

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

# Criteria whose anchors are remembered, some kB each: a class answers the same questions at about the same time.
_KNOWN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """An answer to assess.

    Attributes:
        answer: What the student wrote.
        criteria: What it is judged by.
        profile: Shapes the words of the feedback, never the verdict.
    """

    answer: str
    criteria: Criteria
    profile: StudentProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of an assessment.

    Attributes:
        probabilities: Of the verdict's labels.
        feedback: What to tell the student.
        model: Name of the base model.
        tokens: Tokens of the feedback, prompt included.
    """

    probabilities: Probabilities
    feedback: Feedback
    model: str
    tokens: int

    @property
    def correctness(self) -> float:
        """0 to 100."""
        return self.probabilities.correctness

    @property
    def level(self) -> Level:
        """How far the student has come."""
        return Level.of(self.correctness)


class Assessor:
    """Assesses answers with the base model, whichever adapters there are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[tuple[str, Criteria], Sequence[Mapping[str, float]]] = OrderedDict()

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
        """Returns the probabilities of the verdict's labels. Raises as `assess` does."""
        anchors = await self._anchors(criteria, deadline=deadline)
        weights = await self._engine.weigh(grading.prompt_for(answer, criteria), LABELS, deadline=deadline)
        return Probabilities.calibrated(weights, anchors=anchors)

    async def _anchors(self, criteria: Criteria, *, deadline: float | None) -> Sequence[Mapping[str, float]]:
        """What the model says of the answers that show its bias."""
        # Of this model: until it is loaded, another one may be asked for than the one that answers.
        key = (self._engine.facts.model, criteria)
        anchors = self._known.get(key)
        if anchors is None:
            prompts = [grading.prompt_for(answer, criteria) for answer in grading.anchors_of(criteria)]
            anchors = [await self._engine.weigh(prompt, LABELS, deadline=deadline) for prompt in prompts]
            self._known[key] = anchors
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return anchors
