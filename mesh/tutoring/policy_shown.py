"""Reads from a reply which parts of a student's teaching policy it shows.

A checker for measurements and gates, used on no reply while it is decoded. It reads replies by patterns of its own and
knows no phrase that examples are made with, so that it counts a tutor who says the same in other words. The support by
skill is not read: it belongs to a question, not to the student.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from mesh.tutoring.form import count_words, split_sentences
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, TeachingPolicy, WritingLevel


class PolicySign(StrEnum):
    """What a reader of one reply can see of a policy."""

    WRITING = "writing"
    HABIT = "habit"
    GUIDANCE = "guidance"
    INTEREST = "interest"


# Most words of the longest sentence for a student whose own writing is short, and least for one whose is long.
_SHORT_SENTENCE_WORDS, _LONG_SENTENCE_WORDS = 10, 12
# Interests of several words are named by one of them; shorter words, such as "of", name none.
_INTEREST_LETTERS = 4

_HABITS: Final[Mapping[MistakeKind, re.Pattern[str]]] = {
    kind: re.compile(pattern, re.IGNORECASE)
    for kind, pattern in {
        MistakeKind.BLANK: (
            r"\b(?:write|put|note|jot|set)\b[^.!?]{0,20}\b(?:one|any|some|a|the first|your first)\b[^.!?]{0,12}"
            r"\b(?:thing|word|idea|thought|fact|guess)|\b(?:first|wild|good|best) guess\b|\bguess(?:ing)? is\b"
            r"|\b(?:something|anything|what) (?:that )?you (?:do |already )?know\b|\bbegin with what you\b"
        ),
        MistakeKind.INCOMPLETE: (
            r"\b(?:each|every|all|both) (?:of the )?(?:part|half|piece|halve)s?\b|\bpart by part\b"
            r"|\b(?:if|whether|anything|something|what)\b[^.!?]{0,20}\b(?:missing|left out)\b"
            r"|\b(?:answer(?:ed)?|finish(?:ed)?) (?:each|every|all|both)\b"
            r"|\b(?:give|add|say|write|tell)\b[^.!?]{0,6}\b(?:a|the|your|one) (?:\w+ )?reasons?\b"
            r"|\bread\b[^.!?:]{0,12}\bquestion again\b"
        ),
        MistakeKind.REVERSED: (
            r"\b(?:which|other|right|wrong) way (?:a?round|it goes)\b|\b(?:opposite|reversed?|swap(?:ped)?|backwards)\b"
            r"|\bwhich (?:\w+ )?(?:comes|goes|is|happens) (?:first|before)\b|\bwhat changes\b|\bcause and\b"
            r"|\b(?:which|what) (?:\w+ ){0,2}(?:causes|makes)\b"
        ),
        MistakeKind.OFF_TOPIC: (
            r"\bunderlin|\bkey ?words? of the question\b|\bwords? (?:of|from|in) the question\b"
            r"|\bthe question (?:asks|wants|is about)\b"
            r"|\b(?:finger|eyes?|mind|focus|stay|keep)\b[^.!?]{0,6} on the question\b"
        ),
        MistakeKind.MISSPELT: r"\bspel(?:l|t)|\bletter by letter\b|\b(?:each|every) letter\b|\bcopy the\b",
    }.items()
}
_GUIDANCE: Final[Mapping[GuidanceLevel, re.Pattern[str]]] = {
    GuidanceLevel.MUCH: re.compile(
        r"\b(?:tell|show|ask) me\b|\blet me know\b|\byou (?:can|may|could) (?:always )?ask\b|\bask (?:about|for)\b"
        r"|\bI(?:'ll| can| will| could| am here to)? (?:help|show|explain)\b"
        r"|\bif you (?:ask|get stuck|are stuck|need)\b"
        r"|\bwhich (?:part|word|step)s? (?:is|are|seems?|feels?)\b|\bsay where you\b",
        re.IGNORECASE,
    ),
    GuidanceLevel.LITTLE: re.compile(
        r"\b(?:by yourself|on your own|without (?:my )?help|independently)\b"
        r"|\b(?:do|try|finish|solve|find)(?: \w+){0,3} yourself\b|\b(?:is|are) yours\b"
        r"|\byou can (?:do|finish|take) (?:it|this|the rest)\b|\bover to you\b|\byour turn\b",
        re.IGNORECASE,
    ),
}


def signs_of(policy: TeachingPolicy) -> frozenset[PolicySign]:
    """Returns the signs that a policy asks for; a dimension that nothing is known of asks for none."""
    asks = {
        PolicySign.WRITING: policy.writing.level in {WritingLevel.BELOW, WritingLevel.ABOVE},
        PolicySign.HABIT: policy.mistakes.kind in _HABITS,
        PolicySign.GUIDANCE: policy.guidance.level in _GUIDANCE,
        PolicySign.INTEREST: bool(policy.interests),
    }
    return frozenset(sign for sign, is_due in asks.items() if is_due)


def signs_in(reply: str, policy: TeachingPolicy) -> frozenset[PolicySign]:
    """Returns the signs of a policy that a reply shows, out of those that the policy asks for.

    Args:
        reply: The reply. An empty one shows nothing.
        policy: The student's policy.
    """
    text = reply.replace("\u2019", "'")
    sentences = split_sentences(text)
    if not sentences:
        return frozenset()
    longest = max(map(count_words, sentences))
    is_short = policy.writing.level is WritingLevel.BELOW
    suits_writing = longest <= _SHORT_SENTENCE_WORDS if is_short else longest >= _LONG_SENTENCE_WORDS
    habit, guidance = _HABITS.get(policy.mistakes.kind), _GUIDANCE.get(policy.guidance.level)
    shows = {
        PolicySign.WRITING: suits_writing,
        PolicySign.HABIT: habit is not None and bool(habit.search(text)),
        PolicySign.GUIDANCE: guidance is not None and bool(guidance.search(text)),
        PolicySign.INTEREST: any(_names(text, interest) for interest in policy.interests),
    }
    return signs_of(policy) & {sign for sign, is_there in shows.items() if is_there}


def _names(text: str, interest: str) -> bool:
    """Whether a text names an interest, or one word of it, in singular or plural."""
    words = [word for word in re.findall(r"[^\W\d_]+", interest.lower()) if len(word) >= _INTEREST_LETTERS]
    stems = [re.escape(word.removesuffix("s")) for word in words] or [re.escape(interest.lower())]
    return any(re.search(rf"(?<!\w){stem}(?:s|es)?(?!\w)", text.lower()) for stem in stems)
