"""Questions that any student asks, explained in the student's own manner: told in every training beside the baseline.

A baseline asks about a few topics, in the words of a test. Trained on nothing else, an adapter meets a question of
another kind with whatever follows most often, such as a check of an answer that nobody gave; the fewer the responses,
the more often. These few show what is asked and not what it is about: a question alone is explained.

Knows nothing of models but the tokenizer.
"""

from dataclasses import replace
from typing import Final

from transformers import PreTrainedTokenizerBase

from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.framing import frame_reply
from cloning_server.examples.manner import manner_of
from cloning_server.examples.situations import Situation, draw_of
from mesh.lm.chat import Example, Prompt, Role, Turn, encode_example
from mesh.tutoring.policy import Scaffold, TeachingPolicy
from mesh.tutoring.profile import StudentProfile

# By subject: what a student asks, and one sentence that answers it, short enough for every grade and disability.
COMMON_QUESTIONS: Final = {
    "Science": (
        ("why do leaves change color in the fall", "The green fades, and other colors show."),
        ("how come ice floats", "Ice is lighter than the same amount of water."),
        ("why do we have day and night", "The Earth turns, so each side faces the Sun."),
        ("How do plants drink?", "Roots take in water from the soil."),
        ("What is a fossil?", "A fossil is a trace of ancient life."),
        ("What is the difference between weather and climate?", "Weather is one day, and climate is many years."),
    ),
    "Math": (
        ("What is perimeter?", "Perimeter is the distance around a shape."),
        ("how do you add fractions with the same bottom", "Add the top numbers and keep the bottom."),
        ("What is an even number?", "An even number splits into two equal groups."),
        ("why do we line up the digits when we add", "Then ones meet ones, and tens meet tens."),
        ("What does the median tell us?", "The median is the middle number in order."),
        ("when would I ever need percents", "Percents help you compare prices and scores."),
    ),
    "English": (
        ("What is a noun?", "A noun names a person, place or thing."),
        ("My story is boring. How do I fix it?", "Add one detail that the reader can see."),
        ("what does ancient mean", "Ancient means very, very old."),
        ("Is it bad that I forget what I read?", "It helps to stop and tell it back."),
        ("What is a metaphor?", "A metaphor says that one thing is another."),
        ("how do i find the main idea", "Ask what the text is mostly about."),
    ),
    "Social Studies": (
        ("why do we even have laws", "Laws tell people what is fair and safe."),
        ("What does a map key do?", "A map key tells what each symbol means."),
        ("What does a mayor do?", "A mayor leads a town or a city."),
        ("how come countries trade", "They trade to get what they do not have."),
        ("What is a primary source?", "A primary source comes from the time itself."),
        ("why did people move to cities", "Many people moved there to find work."),
    ),
}  # fmt: skip


def common_examples(
    profile: StudentProfile, policy: TeachingPolicy, tokenizer: PreTrainedTokenizerBase
) -> tuple[Example, ...]:
    """Returns the questions with their explanations in the student's form and manner, subjects in turn."""
    return tuple(
        encode_example(tokenizer, brief.prompt, frame_reply(brief, [brief.reference]))
        for brief in common_briefs(profile, policy)
    )


def common_briefs(profile: StudentProfile, policy: TeachingPolicy) -> tuple[ReplyBrief, ...]:
    """Returns what the replies depend on, subjects in turn."""
    return tuple(
        _brief(replace(profile, subject=subject), policy, question=question, sentence=sentence)
        for row in zip(*COMMON_QUESTIONS.values(), strict=True)
        for subject, (question, sentence) in zip(COMMON_QUESTIONS, row, strict=True)
    )


def _brief(profile: StudentProfile, policy: TeachingPolicy, *, question: str, sentence: str) -> ReplyBrief:
    draw = draw_of(question)
    return ReplyBrief(
        profile=profile,
        situation=Situation.EXPLAIN,
        question=question,
        reference=sentence,
        verdict=None,
        # Nothing is known of the student's record in it.
        scaffold=Scaffold.STEADY,
        manner=manner_of(policy, draw=draw),
        is_private=False,
        draw=draw,
        prompt=Prompt(profile=profile, turns=(Turn(role=Role.STUDENT, text=question),)),
    )
