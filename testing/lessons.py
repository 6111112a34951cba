"""Baselines and plans that the tests of learning share; the questions are made up for them."""

from collections.abc import Mapping, Sequence

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.training import TrainingPlan
from mesh.tutoring.profile import Disability, LearningStyle, StudentProfile

PROFILE = StudentProfile(grade="5", subject="Science", learning_style=LearningStyle.VISUAL, disability=Disability.ADHD)
FEEDBACK = "Almost! Look at the picture again.\n1. Name the part.\n2. Say what it does. What does it do?"
ITEMS = (
    ("What does the heart do?", "The heart pumps blood.", "It beats."),
    ("Why do plants need light?", "Plants need light to make food.", "To grow."),
    ("What is ice made of?", "Ice is made of frozen water.", "Cold."),
    ("What do lungs take in?", "Lungs take in air.", "Air."),
    ("Why does a ball fall?", "Gravity pulls the ball down.", "It is heavy."),
    ("What does a root take up?", "A root takes up water.", "Soil."),
)


def graded(index: int, **facts: object) -> BaselineResponse:
    """A response to one of the items, wrong unless the facts say otherwise."""
    question, reference, answer = ITEMS[index]
    fields: dict[str, object] = {"reference_answer": reference, "skill": "life", "is_correct": False, **facts}
    return BaselineResponse(question=question, student_answer=answer, **fields)  # type: ignore[arg-type] # any field


def commented(count: int, *, feedback: Mapping[int, str] | None = None) -> Baseline:
    """A baseline whose first items a teacher has commented on, each in much the same way."""
    texts = {index: f"{ITEMS[index][1]} {FEEDBACK}" for index in range(count)} | dict(feedback or {})
    return baseline_of([graded(index, teacher_feedback=texts[index]) for index in range(count)])


def baseline_of(responses: Sequence[BaselineResponse]) -> Baseline:
    """A baseline of these responses, with the profile of the tests."""
    return Baseline(profile=PROFILE, responses=tuple(responses))


def plan_of(baseline: Baseline, *, epochs: int = 1, learning_rate: float = 1e-3, seed: int = 7) -> TrainingPlan:
    """A plan of few small steps."""
    return TrainingPlan(
        clone_id="clone1", baseline=baseline, seed=seed, epochs=epochs, learning_rate=learning_rate, batch_examples=2
    )


class DictReplyCache(dict[str, str]):
    """A reply cache that is a dictionary."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Returns the replies that are there, by key."""
        return {key: self[key] for key in keys if key in self}

    def put_many(self, replies: Mapping[str, str]) -> None:
        """Adds replies."""
        self.update(replies)
