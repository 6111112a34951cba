"""The manner of a student's replies: what their teaching policy asks of every reply, whatever the question.

It decides how examples are framed, and is in no prompt: the adapter learns it. Knows nothing of models.
"""

from dataclasses import dataclass

from cloning_server.clone import BaselineResponse
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, Scaffold, TeachingPolicy, WritingLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """What all replies to one student have in common.

    Attributes:
        writing: The reading level that the replies keep to.
        mistake: The kind of mistake that a habit helps against.
        guidance: How much guidance is offered.
        interest: What an example may be about; empty for none.
    """

    writing: WritingLevel = WritingLevel.UNKNOWN
    mistake: MistakeKind = MistakeKind.UNKNOWN
    guidance: GuidanceLevel = GuidanceLevel.UNKNOWN
    interest: str = ""


def manner_of(policy: TeachingPolicy, *, draw: int) -> Manner:
    """Returns the manner that a policy asks for; the draw picks one of the interests."""
    return Manner(
        writing=policy.writing.level,
        mistake=policy.mistakes.kind,
        guidance=policy.guidance.level,
        interest=policy.interests[draw % len(policy.interests)] if policy.interests else "",
    )


def scaffold_of(policy: TeachingPolicy, response: BaselineResponse) -> Scaffold:
    """Returns the support in the skill of a response; steady where the policy names none."""
    supports = policy.scaffolding.skills
    skill = (response.subject, response.skill)
    return next(
        (support.scaffold for support in supports if (support.subject, support.skill) == skill), Scaffold.STEADY
    )
