"""What the sections of the cloning benchmark share: a base model, and students from files or made up."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf import json_format

from benchmarks.replies import replies_to
from cloning_server.edge import order_wire
from cloning_server.examples.examples import ExampleSet, complete_examples, draft_examples, split_examples
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.learning.passes import Passes
from cloning_server.training import TrainingPlan
from mesh.main_brain.base import BaseModel
from testing.lessons import DictReplyCache, commented

# The plan with which the server trains a clone by default.
PLAN = TrainingPlan(clone_id="benchmark", baseline=commented(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class CloningSetup:
    """Everything that the sections of one run share.

    Attributes:
        base: The base model.
        passes: Its passes.
        requests: A StartClone request per student; a class with more students uses them again.
        quick: Whether the run only checks that the benchmark works.
        dtype: Dtype of the base model, as in the settings.
        classes: Numbers of students in the classes to measure.
        cache: Replies that this run has distilled.
    """

    base: BaseModel
    passes: Passes
    requests: Sequence[pb.StartCloneRequest]
    quick: bool
    dtype: str
    classes: Sequence[int]
    cache: DictReplyCache = field(default_factory=DictReplyCache)

    def request(self, number: int, *, responses: int) -> pb.StartCloneRequest:
        """Returns the StartClone request of a student, with the first `responses` of the baseline."""
        request = pb.StartCloneRequest()
        request.CopyFrom(self.requests[number % len(self.requests)])
        del request.baseline_data.responses[responses:]
        return request

    def plan(self, number: int, *, responses: int) -> TrainingPlan:
        """Returns the training plan of a student; students who share a request differ in their seed."""
        baseline = order_wire.order_from(self.request(number, responses=responses)).baseline
        return dataclasses.replace(PLAN, baseline=baseline, seed=number // len(self.requests))

    def examples(self, number: int, *, responses: int) -> ExampleSet:
        """Returns a student's examples, distilled and split as in a clone."""
        plan = self.plan(number, responses=responses)
        drafts = draft_examples(plan.baseline, compute_policy(plan.baseline))
        replies = replies_to(drafts, self.base, self.passes, cache=self.cache, seed=plan.seed)
        all_examples, counts = complete_examples(drafts, replies, self.base.tokenizer)
        return split_examples(all_examples, counts, heldout_share=plan.heldout_share, seed=plan.seed)


def read_requests(paths: Sequence[Path]) -> list[pb.StartCloneRequest]:
    """Returns the requests in files; without files, one request with six made-up questions."""
    if paths:
        return [json_format.Parse(path.read_text(), pb.StartCloneRequest()) for path in paths]
    responses = [
        pb.BaselineResponse(
            question=response.question,
            student_answer=response.student_answer,
            reference_answer=response.reference_answer,
            teacher_feedback=response.teacher_feedback,
            skill=response.skill,
            is_correct=response.is_correct,
        )
        for response in commented(6).responses
    ]
    profile = pb.StudentProfile(name="Ada", grade="5", disability="adhd", learning_style="visual")
    return [
        pb.StartCloneRequest(
            student_id="student00001",
            student_profile=profile,
            baseline_data=pb.BaselineData(assessment_id="made_up", responses=responses),
        )
    ]
