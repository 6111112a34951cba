"""A teaching policy: what a student's own answers say about how to teach them, in five dimensions, with the evidence.

Evidence is counts, never a student's words. Plain code decides (`cloning_server.examples.teaching_policy`), so that a
teacher can check every line. Knows nothing of models.
"""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.dataclasses import dataclass

# The fewest answers that a dimension is decided on; chance rules fewer.
ENOUGH_ANSWERS = 6
# Twelve answers without a request show that a student seldom asks; fewer do not.
ENOUGH_WITHOUT_REQUEST = 12
# A skill with fewer judged answers that gets neither more nor less support has too few for either.
_ENOUGH_FOR_SKILL = 3
# Skills that a sentence names for each support; more are no longer read.
_MOST_SKILLS_TOLD = 5

_Count = Annotated[int, Field(ge=0)]
_Label = Annotated[str, StringConstraints(max_length=128)]
# Manifests hold a policy: it is parsed as strictly as they are.
_STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class WritingLevel(StrEnum):
    """How the student's writing compares with that of pupils of the grade."""

    UNKNOWN = "unknown"
    BELOW = "below"
    AT = "at"
    ABOVE = "above"


class Scaffold(StrEnum):
    """The support that a reply gives in a skill: a recap and one small step, neither, or a step beyond the question."""

    RECAP = "recap"
    STEADY = "steady"
    EXTENSION = "extension"


class MistakeKind(StrEnum):
    """The usual kind of mistake; `NONE` if there are few mistakes, or if no kind stands out."""

    UNKNOWN = "unknown"
    NONE = "none"
    BLANK = "blank"
    INCOMPLETE = "incomplete"
    REVERSED = "reversed"
    OFF_TOPIC = "off_topic"
    MISSPELT = "misspelt"


class GuidanceLevel(StrEnum):
    """How much guidance the student asks for."""

    UNKNOWN = "unknown"
    LITTLE = "little"
    USUAL = "usual"
    MUCH = "much"


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Writing:
    """The reading level that the student's own writing shows.

    Attributes:
        level: The level; unknown without a grade or with too few answers.
        grade: The grade that it is compared with; empty if unknown.
        answers: Answers that were to be written in words, and were.
        sentences: Their sentences.
        words: Their words.
        long_words: Words of seven letters or more; shown, but not decided by.
        expected_words: Words that pupils of the grade write to the same questions, in all; 0 without a grade.
    """

    level: WritingLevel
    grade: Annotated[str, StringConstraints(max_length=2)]
    answers: _Count
    sentences: _Count
    words: _Count
    long_words: _Count
    expected_words: _Count


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class SkillSupport:
    """The support in one skill, by the record of right answers among the judged ones."""

    subject: _Label
    skill: _Label
    scaffold: Scaffold
    correct: _Count
    judged: _Count


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Scaffolding:
    """The support by skill.

    Attributes:
        judged: Judged answers, with and without a skill.
        skills: The skills with judged answers, by subject and name; empty if there are too few answers.
    """

    judged: _Count
    skills: tuple[SkillSupport, ...]


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Mistakes:
    """The usual kind of mistake.

    Attributes:
        kind: The kind.
        judged: Judged answers.
        wrong: Wrong ones among them. Some are of no kind.
        blank: Wrong answers that say nothing, or that the student does not know.
        incomplete: Answers with a part of the points, right or wrong, and wrong ones that hold a part of the right one.
        reversed: Wrong answers that say the contrary of the right one.
        off_topic: Wrong answers that share no word with question and right answer.
        misspelt: Right answers with a misspelt key word, and wrong ones that are right but for it.
    """

    kind: MistakeKind
    judged: _Count
    wrong: _Count
    blank: _Count
    incomplete: _Count
    reversed: _Count
    off_topic: _Count
    misspelt: _Count


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Guidance:
    """How much guidance the student asks for.

    Attributes:
        level: The level.
        answers: All answers.
        requests: Answers, none of them right, that ask something, ask for help, say that the student does not know, or
            are blank.
    """

    level: GuidanceLevel
    answers: _Count
    requests: _Count


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class TeachingPolicy:
    """How to teach one student. The interests are as the profile names them."""

    writing: Writing
    scaffolding: Scaffolding
    mistakes: Mistakes
    guidance: Guidance
    interests: tuple[_Label, ...] = ()


_HABITS: Final[Mapping[MistakeKind, str]] = {
    MistakeKind.BLANK: "write down one thing that you know, then go on from there",
    MistakeKind.INCOMPLETE: "read the question again and check that each part of it has an answer",
    MistakeKind.REVERSED: "say the answer back and check which way round it goes",
    MistakeKind.OFF_TOPIC: "underline the key word of the question and use it in the answer",
    MistakeKind.MISSPELT: "look the key words up in the question and check their spelling",
}
_MISTAKES: Final[Mapping[MistakeKind, str]] = {
    MistakeKind.BLANK: "are left blank or say 'I don't know'",
    MistakeKind.REVERSED: "say the contrary of the right answer",
    MistakeKind.OFF_TOPIC: "are about something else",
}
_LEADS: Final[Mapping[Scaffold, str]] = {
    Scaffold.RECAP: "needs a recap and small steps in",
    Scaffold.EXTENSION: "is ready for more in",
    Scaffold.STEADY: "goes on steadily in",
}
_TOO_FEW: Final = "too few answers yet in"


def habit_against(kind: MistakeKind) -> str:
    """Returns the habit that helps against a kind of mistake, as an advice to the student; empty if there is none."""
    return _HABITS.get(kind, "")


def describe(policy: TeachingPolicy) -> tuple[str, str, str, str, str]:
    """Returns a sentence for teachers per dimension: writing, scaffolding, mistakes, guidance, interests."""
    return (
        _describe_writing(policy.writing),
        _describe_scaffolding(policy.scaffolding),
        _describe_mistakes(policy.mistakes),
        _describe_guidance(policy.guidance),
        f"Is interested in {_listing(policy.interests)}." if policy.interests else "No interests are known.",
    )


def _describe_writing(writing: Writing) -> str:
    if writing.level is WritingLevel.UNKNOWN:
        if writing.answers < ENOUGH_ANSWERS:
            return f"Writing: not enough answers ({writing.answers} in words, {ENOUGH_ANSWERS} are needed)."
        return "Writing: the grade is not known."
    manner = {
        WritingLevel.BELOW: "Writes short answers for",
        WritingLevel.AT: "Writes answers as long as is usual in",
        WritingLevel.ABOVE: "Writes long answers for",
    }[writing.level]
    mean, usual = round(writing.words / writing.answers), round(writing.expected_words / writing.answers)
    per_sentence = round(writing.words / max(writing.sentences, 1))
    return (
        f"{manner} {_grade(writing.grade)}: {_count(mean, 'word')} on average over {writing.answers} answers, "
        f"{per_sentence} per sentence; about {usual} are usual."
    )


def _describe_scaffolding(scaffolding: Scaffolding) -> str:
    if scaffolding.judged < ENOUGH_ANSWERS:
        return f"Support: not enough answers ({scaffolding.judged} judged, {ENOUGH_ANSWERS} are needed)."
    names = Counter(support.skill for support in scaffolding.skills)
    records: dict[str, list[str]] = {lead: [] for lead in (*_LEADS.values(), _TOO_FEW)}
    for support in scaffolding.skills:
        records[_lead_of(support)].append(_record(support, has_namesake=names[support.skill] > 1))
    clauses = [f"{lead} {_first_of(skills)}" for lead, skills in records.items() if skills]
    if not clauses:
        return f"Support: no skill is named in {scaffolding.judged} judged answers."
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _describe_mistakes(mistakes: Mistakes) -> str:
    if mistakes.kind is MistakeKind.UNKNOWN:
        return f"Mistakes: not enough answers ({mistakes.judged} judged, {ENOUGH_ANSWERS} are needed)."
    if mistakes.kind is MistakeKind.NONE:
        return f"Has no usual kind of mistake: {mistakes.wrong} of {_count(mistakes.judged, 'answer')} are wrong."
    habit = f"a habit that helps: {habit_against(mistakes.kind)}."
    judged = _count(mistakes.judged, "answer")
    # Both are found in right answers too.
    if mistakes.kind is MistakeKind.MISSPELT:
        return f"Often knows the answer but misspells a key word: {mistakes.misspelt} of {judged}; {habit}"
    if mistakes.kind is MistakeKind.INCOMPLETE:
        return f"Often gives only a part of the right answer: {mistakes.incomplete} of {judged}; {habit}"
    count = int(getattr(mistakes, mistakes.kind.value))
    return f"When wrong, answers often {_MISTAKES[mistakes.kind]}: {count} of {mistakes.wrong}; {habit}"


def _describe_guidance(guidance: Guidance) -> str:
    if guidance.level is GuidanceLevel.UNKNOWN and guidance.answers >= ENOUGH_ANSWERS:
        return (
            f"Guidance: asks for help in none of {guidance.answers} answers; "
            f"{ENOUGH_WITHOUT_REQUEST} are needed to call that seldom."
        )
    if guidance.level is GuidanceLevel.UNKNOWN:
        return f"Guidance: not enough answers ({guidance.answers}, {ENOUGH_ANSWERS} are needed)."
    amount = {
        GuidanceLevel.LITTLE: "Seldom asks for help",
        GuidanceLevel.USUAL: "Asks for help now and then",
        GuidanceLevel.MUCH: "Often asks for help",
    }[guidance.level]
    return f"{amount}: in {guidance.requests} of {guidance.answers} answers."


def _lead_of(support: SkillSupport) -> str:
    if support.scaffold is Scaffold.STEADY and support.judged < _ENOUGH_FOR_SKILL:
        return _TOO_FEW
    return _LEADS[support.scaffold]


def _record(support: SkillSupport, *, has_namesake: bool) -> str:
    subject = f"{support.subject}: " if has_namesake and support.subject else ""
    return f"{support.skill} ({subject}{support.correct} of {support.judged} right)"


def _first_of(records: list[str]) -> str:
    rest = len(records) - _MOST_SKILLS_TOLD
    return _listing([*records[:_MOST_SKILLS_TOLD], f"{rest} more"] if rest > 0 else records)


def _grade(grade: str) -> str:
    return "kindergarten" if grade == "K" else f"grade {grade}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listing(items: list[str] | tuple[str, ...]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
