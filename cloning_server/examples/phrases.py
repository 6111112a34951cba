"""The sentences of a frame around what is taught: openers by verdict, a habit, an offer of help, a closing question.

Openers have many forms, so that replies do not all begin alike. What the teaching policy asks for has one or two: a
small model learns it from few examples, and says it in every reply. All are plain and literal, with few long words.
Nothing here states a verdict but the openers of feedback.
"""

from collections.abc import Mapping
from typing import Final, TypeVar

from cloning_server.examples.manner import Manner
from cloning_server.examples.situations import Situation, draw_of
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, Scaffold, WritingLevel
from mesh.tutoring.profile import LearningStyle

_Form = TypeVar("_Form")

VERDICT_OPENERS: Final[Mapping[AnswerVerdict, tuple[str, ...]]] = {
    AnswerVerdict.CORRECT: (
        "Yes, that is right.",
        "Your answer is right.",
        "That is correct.",
        "You are right.",
        "Right, you have the answer.",
        "Yes, this is correct.",
    ),
    AnswerVerdict.PARTIALLY_CORRECT: (
        "You are partly right.",
        "Part of your answer is right.",
        "That is partly right.",
        "Some of it is right.",
        "One part is right, and one is still missing.",
    ),
    AnswerVerdict.INCORRECT: (
        "That is not right yet.",
        "Your answer is not right yet.",
        "This is not correct yet.",
        "That is not the answer yet.",
        "This is not quite right yet.",
    ),
    AnswerVerdict.BLANK: (
        "There is no answer here yet.",
        "This one is still blank.",
        "No answer yet, and that is fine.",
        "This one has no answer yet.",
    ),
    AnswerVerdict.OFF_TOPIC: (
        "That is about another question.",
        "Your answer is about something else.",
        "This answers a different question.",
        "This is about a different topic.",
    ),
}
# Those of one situation begin alike, unlike any other's: a model that is in doubt which one it has before it picks the
# likeliest, and not the one whose openers vary least. So it says no verdict that it was not told.
OPENERS: Final[Mapping[Situation, tuple[str, ...]]] = {
    Situation.EXPLAIN: ("Here is the idea.", "Here is one way to say it.", "Here is what to know."),
    Situation.CHECK: (
        "Let's check it with the question.",
        "Let's see if it fits the question.",
        "Let's put it next to the question.",
    ),
    Situation.HINT: (
        "Start with one part.",
        "It is okay to need a hint.",
        "We can start with one small step.",
        "One step at a time is enough.",
    ),
}
GO_BACK: Final = ("Look at the question again.", "Go through the question again.")
# For a student with anxiety, where nothing else in the reply says so.
CALM: Final = (
    "There is no rush.",
    "Take your time.",
    "It is okay to go slowly.",
    "We can go one small step at a time.",
)
# As long as the student's own sentences. One form each: a small model repeats most reliably what it always saw in the
# same words. Replies to right answers hold them too, so "always" makes them advice and not a correction.
HABITS: Final[Mapping[MistakeKind, Mapping[WritingLevel, str]]] = {
    MistakeKind.BLANK: {
        WritingLevel.BELOW: "Always make a first guess.",
        WritingLevel.AT: "Always write down one thing that you know.",
        WritingLevel.ABOVE: "Even if you are not sure yet, always write down one thing that you know.",
    },
    MistakeKind.INCOMPLETE: {
        WritingLevel.BELOW: "Always answer each part.",
        WritingLevel.AT: "Always check that your answer has each part.",
        WritingLevel.ABOVE: "Before you go on, always check that your answer has each part.",
    },
    MistakeKind.REVERSED: {
        WritingLevel.BELOW: "Always check which way round it goes.",
        WritingLevel.AT: "Always check which way round it goes in your answer.",
        WritingLevel.ABOVE: "Before you go on, always check which way round it goes in your answer.",
    },
    MistakeKind.OFF_TOPIC: {
        WritingLevel.BELOW: "Always underline the key word in the question.",
        WritingLevel.AT: "Always underline the key word in the question before you write.",
        WritingLevel.ABOVE: "Always underline the key word in the question, and come back to it as you write.",
    },
    MistakeKind.MISSPELT: {
        WritingLevel.BELOW: "Always check how the key word is spelled.",
        WritingLevel.AT: "Always check how the key word is spelled in your answer.",
        WritingLevel.ABOVE: "When you have your answer, always check how each key word is spelled.",
    },
}
# How much help is at hand; whoever needs little is left alone with the closing question.
HELP: Final = ("Ask me if you get stuck.", "Tell me which part is hard.")
# Where the student's own writing is short, an interest has a sentence of its own.
SHORT_INTERESTS: Final = ("Think of {interest}.", "Try it with {interest}.")
# What a reply ends with: `{do}` is an action on what the support in the skill picks.
_CLOSINGS: Final = ("Can you {do}{interest}{alone}?", "Could you {do}{interest}{alone}?")
_LONG_CLOSINGS: Final = (
    "Now that you have read this, could you {do}{interest}{alone}?",
    "As a next step, would you like to {do}{interest}{alone}?",
)
_ALONE: Final = (" by yourself", " on your own")
# Nothing stands for the question itself.
_THINGS: Final[Mapping[Scaffold, tuple[str, ...]]] = {
    Scaffold.RECAP: ("the first part", "one small part"),
    Scaffold.STEADY: ("",),
    Scaffold.EXTENSION: ("another example", "a new case"),
}
# On the question itself, and on something else.
_ACTIONS: Final[Mapping[LearningStyle | None, tuple[str, str]]] = {
    None: ("explain it", "explain {}"),
    LearningStyle.VISUAL: ("draw it", "draw {}"),
    LearningStyle.AUDITORY: ("say it aloud", "say {} aloud"),
    LearningStyle.READING: ("write it down", "write down {}"),
    LearningStyle.KINESTHETIC: ("act it out", "act out {}"),
    LearningStyle.STRUCTURED: ("put it in steps", "put {} in steps"),
}
# Students with autism are told when the work is done: the profile's instruction promises it.
END_MARKERS: Final = ("Then you are done.", "After that, you are done.", "That is the end of this one.")
# Words at which a sentence is split or left out if it can be, where the student's own writing is short.
SHORT_SENTENCE_WORDS: Final[Mapping[WritingLevel, int]] = {WritingLevel.BELOW: 9}


def habit_against(manner: Manner) -> str:
    """Returns the habit that helps against the student's usual mistake, in a sentence as long as they write.

    Raises:
        KeyError: There is none.
    """
    forms = HABITS[manner.mistake]
    return forms.get(manner.writing, forms[WritingLevel.AT])


def closing_question(scaffold: Scaffold, style: LearningStyle | None, manner: Manner, *, draw: int) -> str:
    """Returns the question that a reply ends with: again in a weak skill, further in a secure one.

    Args:
        scaffold: The support in the skill.
        style: How the student likes to learn.
        manner: Who needs little guidance is asked to do it alone; who writes above grade gets a longer question.
        draw: Picks among forms that say the same.
    """
    forms = _LONG_CLOSINGS if manner.writing is WritingLevel.ABOVE else _CLOSINGS
    (on_it, on_thing), thing = _ACTIONS[style], picked(_THINGS[scaffold], draw)
    is_here = manner.interest and manner.writing is not WritingLevel.BELOW
    return picked(forms, draw).format(
        do=on_thing.format(thing) if thing else on_it,
        interest=f" with {manner.interest}" if is_here else "",
        alone=picked(_ALONE, draw) if manner.guidance is GuidanceLevel.LITTLE else "",
    )


def picked(forms: tuple[_Form, ...], draw: int) -> _Form:
    """Returns one of several forms; which one says nothing of what the same draw picks among others."""
    return forms[draw_of(f"{draw} {forms[0]}") % len(forms)]
