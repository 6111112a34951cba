"""The teaching policy of a student, computed from their baseline by plain code: same baseline, same policy.

Knows nothing of models.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.examples.examples import Band, ResponseVerdict, band_of, verdict_of
from cloning_server.examples.guidance import guidance_of
from cloning_server.examples.mistakes import mistakes_of
from cloning_server.examples.writing_level import writing_of
from mesh.tutoring.policy import ENOUGH_ANSWERS, Scaffold, Scaffolding, SkillSupport, TeachingPolicy

# Keeps manifests small: the skills with the most judged answers stay.
_MOST_SKILLS = 50

_SCAFFOLDS: Final[Mapping[Band, Scaffold]] = {
    Band.STRUGGLING: Scaffold.RECAP,
    Band.DEVELOPING: Scaffold.STEADY,
    Band.SECURE: Scaffold.EXTENSION,
}


def compute_policy(baseline: Baseline) -> TeachingPolicy:
    """Computes the policy; a dimension with too few answers says so."""
    responses = baseline.responses
    return TeachingPolicy(
        writing=writing_of(responses, grade=baseline.profile.grade),
        scaffolding=_scaffolding_of(responses, best_score=baseline.best_score),
        mistakes=mistakes_of(responses, best_score=baseline.best_score),
        guidance=guidance_of(responses, best_score=baseline.best_score),
        interests=baseline.interests,
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
