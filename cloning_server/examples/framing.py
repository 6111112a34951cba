"""The frame of a tutor's reply: how it begins, ends and is laid out, by verdict, by record, and by profile.

These words are fixed: a small model must not make up whether an answer was right, or what to do next. The sentences
between them are distilled. Knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cloning_server.examples.examples import Band, ReplyBrief, ResponseVerdict
from mesh.tutoring.form import FormRules
from mesh.tutoring.profile import Disability, LearningStyle
from mesh.tutoring.teaching import rules_of

# Plain and literal for every student, without unearned praise, and each with a phrase that reassures an anxious student
# (`mesh.tutoring.teaching.REASSURANCES`).
_OPENERS: Mapping[ResponseVerdict, str] = MappingProxyType(
    {
        ResponseVerdict.CORRECT: "Well done, your answer is right.",
        ResponseVerdict.INCORRECT: "Your answer is not right yet, and that is okay.",
        ResponseVerdict.UNKNOWN: "Let's look at your answer together.",
    }
)
# Scaffolding fades as the record grows (Wood, Bruner and Ross, "The Role of Tutoring in Problem Solving", 1976).
_SCAFFOLDS: Mapping[Band, str] = MappingProxyType(
    {
        Band.STRUGGLING: "We can take one small step at a time.",
        Band.DEVELOPING: "",
        Band.SECURE: "",
    }
)
# The closing question: from doing a part again, through doing it alone, to going further.
_CLOSING_QUESTIONS: Mapping[LearningStyle | None, Mapping[Band, str]] = MappingProxyType(
    {
        None: {
            Band.STRUGGLING: "Can you say the first part again?",
            Band.DEVELOPING: "Can you say it in your own words?",
            Band.SECURE: "Can you think of another example?",
        },
        LearningStyle.VISUAL: {
            Band.STRUGGLING: "Can you draw the first part?",
            Band.DEVELOPING: "Can you draw it and show each part?",
            Band.SECURE: "Can you draw another example?",
        },
        LearningStyle.AUDITORY: {
            Band.STRUGGLING: "Can you say the first part aloud?",
            Band.DEVELOPING: "Can you say it aloud in your own words?",
            Band.SECURE: "Can you tell me another example?",
        },
        LearningStyle.READING: {
            Band.STRUGGLING: "Can you write the first part down?",
            Band.DEVELOPING: "Can you write it in your own words?",
            Band.SECURE: "Can you write another example?",
        },
        LearningStyle.KINESTHETIC: {
            Band.STRUGGLING: "Can you show the first part with your hands?",
            Band.DEVELOPING: "Can you show it with things around you?",
            Band.SECURE: "Can you try another example?",
        },
        LearningStyle.STRUCTURED: {
            Band.STRUGGLING: "Can you say the first step again?",
            Band.DEVELOPING: "Can you say each step in your own words?",
            Band.SECURE: "Can you write the steps for another example?",
        },
    }
)
# In every reply to a student with fewer right answers than wrong ones: those who need help most ask for it least (Ryan,
# Pintrich and Midgley, "Avoiding Seeking Help in the Classroom: Who and Why?", 2001). An adapter can also learn it from
# few answers: it is the same for every question, and not in the prompt.
_GUIDANCE = "Tell me which part is hard."
# Students with autism are told when the work is done: the profile's instruction promises it.
_END_MARKER = "Then you are done."


def frame_reply(brief: ReplyBrief, body: Sequence[str]) -> str:
    """The whole reply around the distilled sentences, laid out as the student's form rules ask."""
    rules = rules_of(brief.profile)
    opening = [_OPENERS[brief.verdict], *([_SCAFFOLDS[brief.band]] if _SCAFFOLDS[brief.band] else [])]
    closing = [_CLOSING_QUESTIONS[brief.profile.learning_style][brief.band]]
    if brief.profile.disability is Disability.AUTISM:
        closing.append(_END_MARKER)
    middle = [*body, _GUIDANCE] if brief.is_guided else body
    return _lay_out(opening, middle, closing, rules=rules)


def _lay_out(opening: Sequence[str], body: Sequence[str], closing: Sequence[str], *, rules: FormRules) -> str:
    first, last = " ".join(opening), " ".join(closing)
    if rules.numbered_steps:
        return "\n".join((first, *(f"{number}. {step}" for number, step in enumerate((*body, last), start=1))))
    if rules.max_paragraph_sentences is not None:
        return "\n".join((first, *body, last))
    return " ".join((first, *body, last))
