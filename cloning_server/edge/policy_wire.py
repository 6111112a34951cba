"""A teaching policy as the contract has it."""

from dataclasses import asdict

from aivo.cloning.v1 import student_model_pb2 as pb

from mesh.tutoring.policy import Guidance, Mistakes, SkillSupport, TeachingPolicy, Writing, describe, habit_against


def policy_from(policy: TeachingPolicy) -> pb.TeachingPolicy:
    """Converts a policy, with a sentence for teachers per dimension."""
    writing, scaffolding, mistakes, guidance, interests = describe(policy)
    return pb.TeachingPolicy(
        writing=_writing_from(policy.writing, sentence=writing),
        scaffolding=pb.ScaffoldingPolicy(
            sentence=scaffolding,
            judged=policy.scaffolding.judged,
            skills=map(_skill_from, policy.scaffolding.skills),
        ),
        mistakes=_mistakes_from(policy.mistakes, sentence=mistakes),
        guidance=_guidance_from(policy.guidance, sentence=guidance),
        interests=pb.InterestPolicy(sentence=interests, interests=policy.interests),
    )


# The names are the same on both sides; a count that the contract lacks fails here.


def _writing_from(writing: Writing, *, sentence: str) -> pb.WritingPolicy:
    level = pb.WritingLevel.Value(f"WRITING_LEVEL_{writing.level.name}")
    return pb.WritingPolicy(sentence=sentence, **asdict(writing) | {"level": level})


def _skill_from(support: SkillSupport) -> pb.SkillSupport:
    scaffold = pb.Scaffold.Value(f"SCAFFOLD_{support.scaffold.name}")
    return pb.SkillSupport(**asdict(support) | {"scaffold": scaffold})


def _mistakes_from(mistakes: Mistakes, *, sentence: str) -> pb.MistakePolicy:
    kind = pb.MistakeKind.Value(f"MISTAKE_KIND_{mistakes.kind.name}")
    return pb.MistakePolicy(sentence=sentence, habit=habit_against(mistakes.kind), **asdict(mistakes) | {"kind": kind})


def _guidance_from(guidance: Guidance, *, sentence: str) -> pb.GuidancePolicy:
    level = pb.GuidanceLevel.Value(f"GUIDANCE_LEVEL_{guidance.level.name}")
    return pb.GuidancePolicy(sentence=sentence, **asdict(guidance) | {"level": level})
