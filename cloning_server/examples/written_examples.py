"""The examples that people wrote, and that every training shows beside those of the baseline."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from cloning_server.examples.common_questions import common_examples
from cloning_server.examples.examples import ExampleSet
from cloning_server.examples.retention import retained_examples
from mesh.tutoring.policy import TeachingPolicy
from mesh.tutoring.profile import StudentProfile


def with_written_examples(
    examples: ExampleSet, profile: StudentProfile, policy: TeachingPolicy, tokenizer: PreTrainedTokenizerBase
) -> ExampleSet:
    """Returns the examples with the retained and the common ones, for the student's profile and teaching policy."""
    return replace(
        examples,
        retained=retained_examples(profile, tokenizer),
        common=common_examples(profile, policy, tokenizer),
    )
