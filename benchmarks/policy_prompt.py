"""A teaching policy in the words of a system prompt, which costs tokens in every prompt; an adapter must do better."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from benchmarks.policy_checks import Occasion, PolicyDimension, aims_of
from mesh.lm.chat import Prompt
from mesh.tutoring.policy import GuidanceLevel, Scaffold, TeachingPolicy, WritingLevel, habit_against
from mesh.tutoring.teaching import instruct

_LEVELS: Final[Mapping[object, str]] = {
    WritingLevel.BELOW: "Write shorter sentences and easier words than the grade asks for.",
    WritingLevel.AT: "Write sentences and words of the grade.",
    WritingLevel.ABOVE: "Write longer sentences and more exact words than the grade asks for.",
}
_SUPPORTS: Final[Mapping[object, str]] = {
    Scaffold.RECAP: "Recap what comes first and give one small first step.",
    Scaffold.EXTENSION: "Ask for one step beyond the question.",
}
_AMOUNTS: Final[Mapping[object, str]] = {
    GuidanceLevel.MUCH: "Offer more help.",
    GuidanceLevel.LITTLE: "Let the student go on without help.",
}


def with_policy(prompt: Prompt, policy: TeachingPolicy, occasion: Occasion) -> Prompt:
    """Returns the prompt with the policy added to its system text, as far as the policy is known on the occasion."""
    return replace(prompt, instruction=" ".join((instruct(prompt.profile), *_sentences(policy, occasion))))


def _sentences(policy: TeachingPolicy, occasion: Occasion) -> Iterator[str]:
    aims = aims_of(policy, occasion)
    for dimension, sentences in (
        (PolicyDimension.READING, _LEVELS),
        (PolicyDimension.SCAFFOLD, _SUPPORTS),
        (PolicyDimension.GUIDANCE, _AMOUNTS),
    ):
        if sentence := sentences.get(aims.get(dimension)):
            yield sentence
    if PolicyDimension.HABIT in aims and (habit := habit_against(policy.mistakes.kind)):
        yield f"Advise this habit: {habit}."
    if policy.interests:
        yield f"Mention something that the student likes: {' or '.join(policy.interests)}."
