"""The sentences of a frame around what is taught: openers by verdict, habits, interests, guidance, closing questions.

Each has several forms, so that no reply sounds like another. All are plain and literal, at most ten words, with few
long words, so that they fit every grade and disability. Nothing here states a verdict but the openers of feedback.
"""

from collections.abc import Mapping
from typing import Final, TypeVar

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
        "Half of it is there.",
        "One part is still missing.",
    ),
    AnswerVerdict.INCORRECT: (
        "That is not right yet.",
        "Your answer is not right yet.",
        "This is not correct yet.",
        "That is not the answer yet.",
        "Not quite right yet.",
    ),
    AnswerVerdict.BLANK: (
        "There is no answer here yet.",
        "This one is still blank.",
        "No answer yet, and that is fine.",
    ),
    AnswerVerdict.OFF_TOPIC: (
        "That is about another question.",
        "Your answer is about something else.",
    ),
}
OPENERS: Final[Mapping[Situation, tuple[str, ...]]] = {
    Situation.EXPLAIN: ("", "", "Here is the idea.", "This is how it works.", "Let's look at it."),
    Situation.CHECK: (
        "You can check this answer.",
        "Here is a way to check it.",
        "Let's check it with the question.",
        "Hold your answer next to the question.",
    ),
    Situation.HINT: (
        "Here is a first step.",
        "We can start with one small step.",
        "Begin with the question.",
        "Start with one part.",
    ),
}
# Before a question that is said again to a student who has no right answer to it yet.
AGAIN: Final = "Read it again:"
# For a student with anxiety, where nothing else in the reply says so.
CALM: Final = (
    "There is no rush.",
    "Take your time.",
    "It is okay to go slowly.",
    "We can go one small step at a time.",
)
HABITS: Final[Mapping[MistakeKind, tuple[str, ...]]] = {
    MistakeKind.BLANK: (
        "Write down one thing that you know.",
        "Put any first idea on paper.",
        "A first guess is a good beginning.",
        "Write one word, then go on from it.",
    ),
    MistakeKind.INCOMPLETE: (
        "Check that each part has an answer.",
        "Read the question again, part by part.",
        "Ask yourself if a part is missing.",
        "Give a reason as well.",
    ),
    MistakeKind.REVERSED: (
        "Say it back and check which way round it goes.",
        "Ask which one comes first, and which changes.",
        "Check that it is not the other way round.",
        "Point to what changes, then to what it does.",
    ),
    MistakeKind.OFF_TOPIC: (
        "Underline the key word of the question.",
        "Use a word of the question in your answer.",
        "Ask yourself what the question asks.",
        "Keep your finger on the question.",
    ),
    MistakeKind.MISSPELT: (
        "Look at how the key word is spelled.",
        "Copy the key word from the question.",
        "Check the spelling of the key word.",
        "Spell the key word letter by letter.",
    ),
}
INTERESTS: Final = (
    "Think of {interest} for an example.",
    "You could try it with {interest}.",
    "Make up an example about {interest}.",
    "What could {interest} have to do with it?",
)
GUIDANCE: Final[Mapping[GuidanceLevel, tuple[str, ...]]] = {
    GuidanceLevel.MUCH: (
        "Tell me which part is hard.",
        "Ask me about any word that is new.",
        "Say where you get stuck, and I will help.",
        "I can show the next step if you ask.",
    ),
    GuidanceLevel.LITTLE: (
        "Go on by yourself from here.",
        "Try the rest on your own.",
        "Do the next part by yourself.",
    ),
}
TERMS: Final = ("Use the word '{term}' when you say it.", "The key term is '{term}'.", "Write '{term}' in your answer.")
SMALL_STEPS: Final[Mapping[Scaffold, tuple[str, ...]]] = {
    Scaffold.RECAP: (
        "First, say what the question asks.",
        "Let's go back to the first part.",
        "Do just one small part now.",
        "Start with one word that you know.",
    ),
    Scaffold.EXTENSION: (
        "Now think of a new case where this is true.",
        "Next, think of a case where it is not true.",
        "Then change one thing in the question.",
        "Now make a harder question of your own.",
    ),
}
# What stands in for `{}` is an action of the student, on the thing behind it.
_CLOSING: Final[Mapping[Scaffold, tuple[tuple[str, str], ...]]] = {
    Scaffold.RECAP: (
        ("Can you {}?", "the first part"),
        ("Could you {} now?", "a small part"),
        ("Can you {}?", "just one part"),
    ),
    Scaffold.STEADY: (
        ("Can you {} in your own way?", "it"),
        ("How would you {}?", "it"),
        ("Can you {} so that a friend sees why?", "it"),
    ),
    Scaffold.EXTENSION: (
        ("Can you {}?", "another example"),
        ("How would you {}?", "a harder case"),
        ("Could you {} next?", "one more example"),
    ),
}
_ACTIONS: Final[Mapping[LearningStyle | None, str]] = {
    None: "explain {}",
    LearningStyle.VISUAL: "draw {}",
    LearningStyle.AUDITORY: "say {} aloud",
    LearningStyle.READING: "write {} down",
    LearningStyle.KINESTHETIC: "act {} out",
    LearningStyle.STRUCTURED: "put {} in steps",
}
# Students with autism are told when the work is done: the profile's instruction promises it.
END_MARKERS: Final = ("Then you are done.", "After that, you are done.", "That is the end of this one.")
# Words of a sentence at which a reply is kept, where the student's own writing is short.
SHORT_SENTENCE_WORDS: Final[Mapping[WritingLevel, int]] = {WritingLevel.BELOW: 9}


def closing_question(scaffold: Scaffold, style: LearningStyle | None, *, draw: int) -> str:
    """Returns the question that a reply ends with: again in a weak skill, further in a secure one."""
    question, thing = picked(_CLOSING[scaffold], draw)
    return question.format(_ACTIONS[style].format(thing))


def picked(forms: tuple[_Form, ...], draw: int) -> _Form:
    """Returns one of several forms; which one says nothing of what the same draw picks among others."""
    return forms[draw_of(f"{draw} {forms[0]}") % len(forms)]
