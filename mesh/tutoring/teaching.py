"""How AIVO addresses a student: instructions for the model and form rules for the reply, by part of the profile.

Every accommodation is a row of a table. Its instructions go into the prompt, and its rules check replies, so that every
promise can be measured. Instructions are few and short: the default base model is small, and every request pays for
them.

The rows follow CAST, "Universal Design for Learning Guidelines 3.0" (2024), checkpoints on clarifying vocabulary and
syntax, on scaffolds and on emotional capacity; other sources stand at their row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mesh.tutoring.form import FormRules
from mesh.tutoring.profile import Disability, LearningStyle, StudentProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Accommodation:
    """What a reply must do for one part of a profile.

    Attributes:
        name: Name in reports.
        instructions: Sentences for the system prompt, in their order.
        with_verdict: Said again after a verdict, which would else be the last that a small model reads.
        rules: The form that a reply must have to meet the accommodation.
    """

    name: str
    instructions: tuple[str, ...]
    with_verdict: str = ""
    rules: FormRules = field(default_factory=FormRules)


# Phrases that do not mean what their words say. No dictionary of idioms: only those that tutors use.
IDIOMS = (
    "piece of cake", "break a leg", "hit the nail on the head", "in a nutshell", "rule of thumb", "ring a bell",
    "get the hang of", "on the right track", "give it a shot", "think outside the box", "a no-brainer", "hang in there",
    "back to square one", "the big picture", "at the end of the day", "under your belt", "keep an eye on",
    "the tip of the iceberg", "easy as pie", "cut corners", "learn the ropes", "a walk in the park",
)  # fmt: skip
# Phrases that put a worried student under pressure: time, comparison, and claims that it is easy.
PRESSURES = (
    "hurry", "be quick", "as fast as you can", "time limit", "running out of time", "deadline", "you should know",
    "should already know", "everyone else", "this is easy", "obviously", "you failed", "don't worry",
)  # fmt: skip
# Each of these tells a student that there is time and that they are doing fine.
REASSURANCES = (
    "take your time", "it is okay", "it's okay", "that is okay", "that's okay", "no rush", "you can do this",
    "good start", "good question", "well done", "one small step", "small step", "we can", "let's",
)  # fmt: skip

# Words per sentence by school stage, close to the textbooks of that stage.
_GRADE_ROWS = (
    (
        ("K", "1", "2"),
        Accommodation(
            name="grades K-2",
            instructions=("Use easy words that a young child knows.",),
            rules=FormRules(max_sentence_words=12, max_sentences=6, max_long_words=2),
        ),
    ),
    (
        ("3", "4", "5"),
        Accommodation(
            name="grades 3-5",
            instructions=("Use common words and explain each new word.",),
            rules=FormRules(max_sentence_words=18, max_sentences=9, max_long_words=6),
        ),
    ),
    (
        ("6", "7", "8"),
        Accommodation(
            name="grades 6-8",
            instructions=("Use clear words and define the terms of the subject.",),
            rules=FormRules(max_sentence_words=24, max_sentences=12),
        ),
    ),
    (
        ("9", "10", "11", "12"),
        Accommodation(
            name="grades 9-12",
            instructions=("Use the exact terms of the subject.",),
            rules=FormRules(max_sentence_words=30, max_sentences=15),
        ),
    ),
)
GRADE_BANDS: Mapping[str, Accommodation] = MappingProxyType(
    {grade: row for grades, row in _GRADE_ROWS for grade in grades}
)

# A preference for presentation, no more: see `LearningStyle`.
STYLES: Mapping[LearningStyle, Accommodation] = MappingProxyType(
    {
        LearningStyle.VISUAL: Accommodation(
            name="visual", instructions=("Describe what it looks like, so the student can picture it.",)
        ),
        LearningStyle.AUDITORY: Accommodation(
            name="auditory", instructions=("Explain as if you speak aloud, with words that sound good together.",)
        ),
        LearningStyle.READING: Accommodation(
            name="reading", instructions=("Explain in writing and name the key terms.",)
        ),
        LearningStyle.KINESTHETIC: Accommodation(
            name="kinesthetic", instructions=("Include something to do with the hands or to try.",)
        ),
        LearningStyle.STRUCTURED: Accommodation(
            name="structured",
            instructions=("Number the steps in order.",),
            rules=FormRules(numbered_steps=True),
        ),
    }
)

DISABILITIES: Mapping[Disability, Accommodation] = MappingProxyType(
    {
        # Short segments, one thing at a time, checks of understanding: U.S. Department of Education, "Teaching Children
        # with Attention Deficit Hyperactivity Disorder: Instructional Strategies and Practices" (2008).
        Disability.ADHD: Accommodation(
            name="adhd",
            instructions=("Give short numbered steps, one idea in each.", "End with one short question."),
            rules=FormRules(
                max_sentence_words=16,
                max_sentences=8,
                max_paragraph_sentences=2,
                numbered_steps=True,
                ends_with_question=True,
            ),
        ),
        # Task analysis and explicit instruction are among the practices of Steinbrenner et al., "Evidence-Based
        # Practices for Children, Youth, and Young Adults with Autism" (2020). The same order each time is predictable.
        Disability.AUTISM: Accommodation(
            name="autism",
            instructions=(
                "Say exactly what you mean, with no idioms or jokes.",
                "Number the steps in order and say when it is done.",
            ),
            rules=FormRules(max_sentence_words=18, max_paragraph_sentences=3, numbered_steps=True, avoids=IDIOMS),
        ),
        # Short simple sentences, lists rather than dense paragraphs: British Dyslexia Association, "Dyslexia Style
        # Guide" (2023).
        Disability.DYSLEXIA: Accommodation(
            name="dyslexia",
            instructions=("Write short sentences with short common words.", "Start a new line for each idea."),
            rules=FormRules(max_sentence_words=14, max_sentences=8, max_paragraph_sentences=2, max_long_words=4),
        ),
        # Options for emotional capacity and for reducing threats: CAST, UDL Guidelines 3.0, Engagement.
        Disability.ANXIETY: Accommodation(
            name="anxiety",
            instructions=("Be calm and kind, and say there is no rush.", "Give one small first step."),
            with_verdict="Say early that there is no rush.",
            rules=FormRules(max_sentence_words=18, max_sentences=7, avoids=PRESSURES, required_phrases=REASSURANCES),
        ),
    }
)

# For an unknown grade.
_ANY_GRADE = Accommodation(
    name="any grade",
    instructions=("Use common words.",),
    rules=FormRules(max_sentence_words=24, max_sentences=12),
)


def accommodations_of(profile: StudentProfile) -> tuple[Accommodation, ...]:
    """Returns a profile's accommodations: its grade band, then its learning style, then its disability.

    The disability comes last because it matters most and a small model follows best what it reads last.
    """
    rows = [GRADE_BANDS[profile.grade] if profile.grade else _ANY_GRADE]
    if profile.learning_style:
        rows.append(STYLES[profile.learning_style])
    if profile.disability:
        rows.append(DISABILITIES[profile.disability])
    return tuple(rows)


def rules_of(profile: StudentProfile) -> FormRules:
    """Returns the form of a reply to this student: the rules of all accommodations; the tightest limit wins."""
    rules = FormRules()
    for row in accommodations_of(profile):
        rules = rules.combine(row.rules)
    return rules


def instruct(profile: StudentProfile) -> str:
    """Returns the system prompt for a student: grade, subject, the longest sentence in words, and instructions."""
    grade = {None: "a", "K": "a kindergarten"}.get(profile.grade, f"a grade {profile.grade}")
    subject = f" in {profile.subject}" if profile.subject else ""
    rows = accommodations_of(profile)
    limit = rules_of(profile).max_sentence_words
    return " ".join(
        (
            f"You are a tutor for {grade} student{subject}.",
            f"Keep every sentence under {limit} words.",
            *(sentence for row in rows for sentence in row.instructions),
        )
    )


def instruct_with_verdict(profile: StudentProfile) -> str:
    """Returns what the system prompt says again after a verdict; empty for most students."""
    return " ".join(row.with_verdict for row in accommodations_of(profile) if row.with_verdict)
