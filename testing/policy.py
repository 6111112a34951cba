"""The teaching policy of a student who writes little and makes few mistakes."""

from mesh.tutoring.policy import (
    Guidance,
    GuidanceLevel,
    MistakeKind,
    Mistakes,
    Scaffolding,
    TeachingPolicy,
    Writing,
    WritingLevel,
)

SHORT_WRITING = Writing(
    level=WritingLevel.BELOW, grade="4", answers=24, sentences=24, words=144, long_words=9, expected_words=312
)
FEW_MISTAKES = Mistakes(
    kind=MistakeKind.NONE, judged=24, wrong=2, blank=0, incomplete=2, reversed=0, off_topic=0, misspelt=0
)
POLICY = TeachingPolicy(
    writing=SHORT_WRITING,
    scaffolding=Scaffolding(judged=24, skills=()),
    mistakes=FEW_MISTAKES,
    guidance=Guidance(level=GuidanceLevel.LITTLE, answers=24, requests=0),
)
