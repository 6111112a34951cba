"""How a guard is asked about a text, and what its answer means; in training and in serving."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.criteria import one_line
from mesh.tutoring.profile import GradeBand, StudentProfile


class HarmCategory(StrEnum):
    """What a harmful text is about, and what a near miss only seems to be about."""

    SELF_HARM = "self_harm"
    VIOLENCE = "violence"
    SEXUAL = "sexual"
    DRUGS = "drugs"
    HATE = "hate"
    DANGER = "danger"


class Speaker(StrEnum):
    """Who says a text."""

    STUDENT = "student"
    TUTOR = "tutor"


SAFE_LABEL = "Safe"
_HARM_LABELS: Mapping[HarmCategory, str] = {
    HarmCategory.SELF_HARM: "Self-harm",
    HarmCategory.VIOLENCE: "Violence",
    HarmCategory.SEXUAL: "Sexual",
    HarmCategory.DRUGS: "Drugs",
    HarmCategory.HATE: "Hate",
    HarmCategory.DANGER: "Danger",
}
# Labels that a reply may begin with: safe, then one per category, in their order. The first token of each differs from
# that of the others.
GUARD_LABELS = (SAFE_LABEL, *_HARM_LABELS.values())

# Characters of a piece of a long text, and of what a piece repeats of the one before: a guard learns from short texts,
# and a harmful sentence between two pages of harmless ones would be lost on it.
_PIECE_CHARACTERS, _REPEATED_CHARACTERS = 600, 120
# More capitals than this share of the letters are no sign of names.
_MOST_CAPITALS = 0.3
# A category with less than this share of the probability of harm is no reading of the text, but doubt.
_LEAST_SHARE = 0.25
# How much more surely a tutor's text must be harmful than a student's, in logits. A tutor speaks of harm to those who
# meet it, and its replies are read sentence by sentence: without this, 4 % of the lessons' replies were blocked.
_TUTOR_LATER = 1.5


def guard_prompt(text: str, *, speaker: Speaker, grade: str | None) -> Prompt:
    """Returns the prompt that a guard continues with one of `GUARD_LABELS`.

    It has as few tokens as a prompt can have, because a student's reply waits until it is read.

    Args:
        text: One piece of a text; see `pieces_of`.
        speaker: Who says it.
        grade: The student's, one of `GRADES`; None if unknown.
    """
    instruction = f"{speaker.title()} {GradeBand.of(grade)}" if grade else speaker.title()
    turn = Turn(role=Role.STUDENT, text=_without_shouting(one_line(text)))
    return Prompt(profile=StudentProfile(), turns=(turn,), instruction=instruction)


def _without_shouting(line: str) -> str:
    """Returns the text in lower case if it is written in capitals, all or many: a small model knows few such tokens."""
    letters = [letter for letter in line if letter.isalpha()]
    capitals = sum(letter.isupper() for letter in letters)
    return line.lower() if capitals > _MOST_CAPITALS * len(letters) and capitals > 1 else line


def label_of(category: HarmCategory | None) -> str:
    """Returns the label of a category; that of a safe text for None."""
    return SAFE_LABEL if category is None else _HARM_LABELS[category]


def pieces_of(text: str) -> list[str]:
    """Returns a text in pieces that are short enough for a guard; each but the first repeats the end of the one before.

    A text is as harmful as the most harmful of its pieces. A short text is one piece.
    """
    line = one_line(text)
    pieces = []
    while len(line) > _PIECE_CHARACTERS:
        # At a blank if there is one, so that no word is cut.
        end = line.rfind(" ", _PIECE_CHARACTERS // 2, _PIECE_CHARACTERS + 1)
        end = _PIECE_CHARACTERS if end < 0 else end
        pieces.append(line[:end])
        start = line.find(" ", end - _REPEATED_CHARACTERS, end)
        line = line[end - _REPEATED_CHARACTERS if start < 0 else start :].strip()
    return [*pieces, line]


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmReading:
    """What a guard makes of a text.

    Attributes:
        safe: The probability that the text is safe.
        harms: The probability of each category; with `safe` they add up to 1.
    """

    safe: float
    harms: Mapping[HarmCategory, float]

    @classmethod
    def of(cls, probabilities: Sequence[float]) -> Self:
        """Returns the reading of the probabilities of `GUARD_LABELS`, in their order."""
        return cls(safe=probabilities[0], harms=dict(zip(HarmCategory, probabilities[1:], strict=True)))

    @property
    def harm(self) -> float:
        """The probability that the text is harmful, whatever it is about."""
        return 1 - self.safe

    @property
    def plausible(self) -> list[HarmCategory]:
        """The categories that the harm may well be of, likeliest first: the likeliest, and those close behind."""
        ordered = sorted(HarmCategory, key=self.harms.__getitem__, reverse=True)
        least = _LEAST_SHARE * self.harm
        return [category for category in ordered if category is ordered[0] or self.harms[category] >= least]

    def flagged(self, thresholds: Mapping[HarmCategory, float], *, speaker: Speaker) -> list[HarmCategory]:
        """Returns the plausible categories whose thresholds `harm` reaches, likeliest first; none if the text passes.

        A tutor's text must be harmful more surely, by `_TUTOR_LATER`.

        Not the probability of a category decides but that of any harm: a text that two categories share equally is no
        less harmful than one that one category has for itself.
        """
        alarm = logit(self.harm) - (_TUTOR_LATER if speaker is Speaker.TUTOR else 0.0)
        return [category for category in self.plausible if alarm >= logit(thresholds[category])]


def logit(probability: float) -> float:
    """Returns the log odds of a probability, which is taken to be neither 0 nor 1."""
    bounded = min(1 - 1e-6, max(1e-6, probability))
    return math.log(bounded / (1 - bounded))


def thresholds_of_grade(
    thresholds: Mapping[HarmCategory, Mapping[GradeBand, float]], grade: str | None
) -> dict[HarmCategory, float]:
    """Returns the threshold of each category for a student's grade; the lowest of all bands if the grade is unknown."""
    band = GradeBand.of(grade) if grade else None
    return {
        category: min(by_band.values()) if band is None else by_band[band] for category, by_band in thresholds.items()
    }


def ordered_weights(weights: Mapping[str, float]) -> list[float]:
    """Returns the weights of `GUARD_LABELS`, in their order."""
    return [weights[label] for label in GUARD_LABELS]
