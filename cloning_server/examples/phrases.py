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
OPENERS: Final[Mapping[Situation, tuple[str, ...]]] = {
    Situation.EXPLAIN: (
        "",
        "Here is the idea.",
        "Here is one way to say it.",
        "Let's look at it.",
        "Let's think about this question.",
        "Here is what to know.",
    ),
    Situation.CHECK: (
        "You can check this answer.",
        "Here is a way to check it.",
        "Let's check it with the question.",
        "Put your answer next to the question.",
        "Compare your answer with the question.",
        "See if your answer fits the question.",
    ),
    Situation.HINT: (
        "Here is a first step.",
        "We can start with one small step.",
        "Let's begin with the question.",
        "Start with one part.",
        "It is okay to need a hint.",
        "Let's see what the question tells us.",
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
# They speak of the student's own answer, so that they fit behind a right one of the tutor's as well.
HABITS: Final[Mapping[MistakeKind, tuple[str, ...]]] = {
    MistakeKind.BLANK: (
        "Write down one thing that you know.",
        "Write down any idea that you have.",
        "A first guess is always welcome.",
        "Write one word, then go on from it.",
        "Put your first idea on paper.",
    ),
    MistakeKind.INCOMPLETE: (
        "Answer each part of the question.",
        "Answer the question part by part.",
        "Ask yourself if your answer has every part.",
        "Add a reason to your answer.",
        "Check that you answered every part.",
    ),
    MistakeKind.REVERSED: (
        "Check which way round it goes in your answer.",
        "Ask yourself which thing causes the other.",
        "Say what changes, and what makes it change.",
        "Say your answer the other way round, then compare.",
        "Check that your answer is not the other way round.",
    ),
    MistakeKind.OFF_TOPIC: (
        "Underline the key word in the question.",
        "Use a word from the question in your answer.",
        "Ask yourself what the question asks.",
        "Say what the question asks, in your own words.",
        "Keep your eyes on the question as you write.",
    ),
    MistakeKind.MISSPELT: (
        "Look at how the key word is spelled.",
        "Copy the spelling of the key word.",
        "Check the spelling of the key word.",
        "Spell the key word letter by letter.",
        "Look at each letter of the key word.",
    ),
}
INTERESTS: Final = (
    "Think of {interest} for an example.",
    "You could use {interest} as an example.",
    "Make up an example about {interest}.",
    "Look for an example in {interest}.",
    "An example from {interest} could be useful.",
)
# The closing question comes next: it is what the student does alone.
GUIDANCE: Final[Mapping[GuidanceLevel, tuple[str, ...]]] = {
    GuidanceLevel.MUCH: (
        "Tell me which part is hard.",
        "Ask me about any word that is new.",
        "Say where you get stuck, and I will help.",
        "I can show you the next step if you ask.",
        "You can ask me for a hint.",
    ),
    GuidanceLevel.LITTLE: (
        "You can try it on your own.",
        "Do the next part by yourself.",
        "You can try this part by yourself.",
        "Try the next question on your own.",
        "You can do the next part yourself.",
    ),
}
# They name the term and ask for nothing: the reply asks enough behind them.
TERMS: Final = ("A word to use here is '{term}'.", "One word to use is '{term}'.", "A useful word here is '{term}'.")
SMALL_STEPS: Final[Mapping[Scaffold, tuple[str, ...]]] = {
    Scaffold.RECAP: (
        "Let's go back to the first part.",
        "Do just one small part now.",
        "Start with the easy part.",
        "One small step at a time is enough.",
    ),
    Scaffold.EXTENSION: (
        "Now think of a new case where this is true.",
        "Next, think of a case where it is not true.",
        "Then change one thing in the question.",
        "Now make a harder question of your own.",
        "Ask what would be different in another case.",
    ),
}
# What stands in for `{}` is an action of the student: on "it", or on the thing behind the question.
_CLOSING: Final[Mapping[Scaffold, tuple[tuple[str, str], ...]]] = {
    Scaffold.RECAP: (
        ("Can you {}?", "the first part"),
        ("Could you {} now?", "a small part"),
        ("Can you {}?", "just one part"),
        ("Could you {} for me?", "the first part"),
    ),
    Scaffold.STEADY: (
        ("Can you {} in your own way?", ""),
        ("How would you {}?", ""),
        ("Can you {} for a friend?", ""),
        ("Could you {} now?", ""),
    ),
    Scaffold.EXTENSION: (
        ("Can you {}?", "another example"),
        ("How would you {}?", "a harder case"),
        ("Could you {} next?", "one more example"),
        ("Can you {}?", "a new case"),
    ),
}
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
# Words of a sentence at which a reply is kept, where the student's own writing is short.
SHORT_SENTENCE_WORDS: Final[Mapping[WritingLevel, int]] = {WritingLevel.BELOW: 9}


def closing_question(scaffold: Scaffold, style: LearningStyle | None, *, draw: int) -> str:
    """Returns the question that a reply ends with: again in a weak skill, further in a secure one."""
    question, thing = picked(_CLOSING[scaffold], draw)
    on_it, on_thing = _ACTIONS[style]
    return question.format(on_thing.format(thing) if thing else on_it)


def picked(forms: tuple[_Form, ...], draw: int) -> _Form:
    """Returns one of several forms; which one says nothing of what the same draw picks among others."""
    return forms[draw_of(f"{draw} {forms[0]}") % len(forms)]
