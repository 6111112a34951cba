"""The rules beside the guard. Each can be left out, and each is measured alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from brain_server.safety.distress import tells_distress
from brain_server.safety.known_words import warm_up
from brain_server.safety.normalizer import rule_readings, undisguise
from brain_server.safety.personal_data import personal_data_in
from brain_server.safety.phrases import find_phrases
from brain_server.safety.profanity import is_profane
from brain_server.safety.verdict import Finding, SafetyAction, SafetyCategory

# `spelling` undoes spelling tricks and slips before the guard reads; the others find something.
RuleName = Literal["spelling", "personal_data", "phrases", "distress", "profanity"]
ALL_RULES: tuple[RuleName, ...] = ("spelling", "personal_data", "phrases", "distress", "profanity")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenText:
    """A text to screen.

    Attributes:
        text: The words.
        by_student: Whether a student says them; else a tutor does.
        answers: What the text answers. Personal data that it repeats from there is no news to the student.
    """

    text: str
    by_student: bool
    answers: str = ""


class SafetyRules:
    """The rules that are switched on."""

    def __init__(self, names: tuple[RuleName, ...] = ALL_RULES) -> None:
        self._names = frozenset(names)
        if names:
            warm_up()

    def readable(self, text: str) -> str:
        """Returns a text as the guard should read it."""
        return undisguise(text) if "spelling" in self._names else text

    def find(self, spoken: SpokenText) -> Iterator[Finding]:
        """Yields what the rules find."""
        readings = rule_readings(spoken.text) if self._names & {"phrases", "distress"} else ()
        if "phrases" in self._names:
            yield from find_phrases(readings, by_student=spoken.by_student)
        if "distress" in self._names and spoken.by_student and tells_distress(readings):
            yield Finding(category=SafetyCategory.DISTRESS, probability=1.0, action=SafetyAction.SUPPORT)
        # A student who tells an address or swears still gets an answer; a tutor has no reason for either.
        action = SafetyAction.CAREFUL if spoken.by_student else SafetyAction.REFUSE
        if "personal_data" in self._names and self._tells_personal_data(spoken):
            yield Finding(category=SafetyCategory.PERSONAL_DATA, probability=1.0, action=action)
        if "profanity" in self._names and is_profane(spoken.text):
            yield Finding(category=SafetyCategory.PROFANITY, probability=1.0, action=action)

    def _tells_personal_data(self, spoken: SpokenText) -> bool:
        return bool(personal_data_in(spoken.text) - personal_data_in(spoken.answers))
