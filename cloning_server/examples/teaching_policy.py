"""The teaching policy of a student, computed from their baseline by plain code: same answers, same policy.

Knows nothing of models.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.examples.guidance import guidance_of
from cloning_server.examples.mistakes import mistakes_of
from cloning_server.examples.verdicts import Band, ResponseVerdict, band_of, verdict_of
from cloning_server.examples.writing_level import writing_of
from mesh.tutoring.policy import (
    ENOUGH_ANSWERS,
    GuidanceLevel,
    MistakeKind,
    Scaffold,
    Scaffolding,
    SkillSupport,
    TeachingPolicy,
    WritingLevel,
)

_Dimension = TypeVar("_Dimension")

# Keeps manifests small: the skills with the most judged answers stay.
_MOST_SKILLS = 50

_SCAFFOLDS: Final[Mapping[Band, Scaffold]] = {
    Band.STRUGGLING: Scaffold.RECAP,
    Band.DEVELOPING: Scaffold.STEADY,
    Band.SECURE: Scaffold.EXTENSION,
}


def compute_policy(baseline: Baseline, *, earlier: TeachingPolicy | None = None) -> TeachingPolicy:
    """Computes the policy; a dimension with too few answers says so.

    Args:
        baseline: The student's answers and interests.
        earlier: The policy of the version that this baseline is added to. It stands where the new answers are too few.
    """
    responses = baseline.responses
    policy = TeachingPolicy(
        writing=writing_of(responses, grade=baseline.profile.grade),
        scaffolding=_scaffolding_of(responses, best_score=baseline.best_score),
        mistakes=mistakes_of(responses, best_score=baseline.best_score),
        guidance=guidance_of(responses, best_score=baseline.best_score),
        interests=baseline.interests,
    )
    return policy if earlier is None else _complete(policy, earlier)


def _complete(policy: TeachingPolicy, earlier: TeachingPolicy) -> TeachingPolicy:
    def choose(new: _Dimension, old: _Dimension, is_known: Callable[[_Dimension], bool]) -> _Dimension:
        return old if is_known(old) and not is_known(new) else new

    return TeachingPolicy(
        writing=choose(policy.writing, earlier.writing, lambda part: part.level is not WritingLevel.UNKNOWN),
        scaffolding=choose(policy.scaffolding, earlier.scaffolding, lambda part: part.judged >= ENOUGH_ANSWERS),
        mistakes=choose(policy.mistakes, earlier.mistakes, lambda part: part.kind is not MistakeKind.UNKNOWN),
        guidance=choose(policy.guidance, earlier.guidance, lambda part: part.level is not GuidanceLevel.UNKNOWN),
        interests=policy.interests or earlier.interests,
    )


def _scaffolding_of(responses: Sequence[BaselineResponse], *, best_score: float) -> Scaffolding:
    judged: Counter[tuple[str, str]] = Counter()
    correct: Counter[tuple[str, str]] = Counter()
    for response in responses:
        verdict, skill = verdict_of(response, best_score=best_score), (response.subject, response.skill)
        judged[skill] += verdict is not ResponseVerdict.UNKNOWN
        correct[skill] += verdict is ResponseVerdict.CORRECT
    total = judged.total()
    by_evidence = sorted(judged, key=lambda skill: (-judged[skill], skill))
    named_skills = [skill for skill in by_evidence if skill[1] and judged[skill]] if total >= ENOUGH_ANSWERS else []
    supports = tuple(
        SkillSupport(
            subject=subject,
            skill=skill,
            scaffold=_SCAFFOLDS[band_of(correct=correct[subject, skill], judged=judged[subject, skill])],
            correct=correct[subject, skill],
            judged=judged[subject, skill],
        )
        for subject, skill in sorted(named_skills[:_MOST_SKILLS])
    )
    return Scaffolding(judged=total, skills=supports)
