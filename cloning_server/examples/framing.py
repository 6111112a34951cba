"""How a tutor's reply begins, ends and is laid out: by verdict, by record, and as the student's profile asks.

The words are the product's, not a model's: whether an answer was right, and what to do next, is not for a small model
to make up. What stands between them is distilled. Knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cloning_server.examples.examples import AnswerVerdict, Band, Lesson
from mesh.tutoring.form import FormRules
from mesh.tutoring.profile import Disability, LearningStyle
from mesh.tutoring.teaching import rules_of

# Plain and literal for every student, never praise that the answer has not earned, and each with a phrase that tells an
# anxious student that they are all right (`mesh.tutoring.teaching.REASSURANCES`).
_OPENERS: Mapping[AnswerVerdict, str] = MappingProxyType(
    {
        AnswerVerdict.CORRECT: "Well done, your answer is right.",
        AnswerVerdict.INCORRECT: "Your answer is not right yet, and that is okay.",
        AnswerVerdict.UNKNOWN: "Let's look at your answer together.",
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
# What the student is asked to do last: from doing a part again, through doing it alone, to carrying it further.
_ASKS: Mapping[LearningStyle | None, Mapping[Band, str]] = MappingProxyType(
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
# Said in every reply to a student who gets fewer than half right: those who need help most ask for it least (Ryan,
# Pintrich and Midgley, "Avoiding Seeking Help in the Classroom: Who and Why?", 2001). It is also what an adapter can
# learn of a student from few answers: the same whatever is asked, and not in the prompt.
_GUIDE = "Tell me which part is hard."
# A student with autism is told when it is done, as the profile's instruction says.
_DONE = "Then you are done."


def frame_reply(lesson: Lesson, body: Sequence[str]) -> str:
    """The whole reply around the sentences that carry the substance, laid out as the student's form rules ask."""
    rules = rules_of(lesson.profile)
    opening = [_OPENERS[lesson.verdict], *([_SCAFFOLDS[lesson.band]] if _SCAFFOLDS[lesson.band] else [])]
    asks = _ASKS[lesson.profile.learning_style]
    closing = [asks[lesson.band]]
    if lesson.profile.disability is Disability.AUTISM:
        closing.append(_DONE)
    guided = [*body, _GUIDE] if lesson.is_guided else body
    return _lay_out(opening, guided, closing, rules=rules)


def _lay_out(opening: Sequence[str], body: Sequence[str], closing: Sequence[str], *, rules: FormRules) -> str:
    first, last = " ".join(opening), " ".join(closing)
    if rules.numbered_steps:
        return "\n".join((first, *(f"{number}. {step}" for number, step in enumerate((*body, last), start=1))))
    if rules.max_paragraph_sentences is not None:
        return "\n".join((first, *body, last))
    return " ".join((first, *body, last))
