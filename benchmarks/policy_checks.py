"""Whether a reply shows a teaching policy: one check per dimension, each reads the words of a reply alone.

The checks know in what words tutors in general recap, offer help or set a harder task. They share no table with what
makes a clone's examples, so a clone is not measured by the phrases that it was taught.
"""

import re
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from mesh.tutoring.form import count_words, split_sentences
from mesh.tutoring.policy import ENOUGH_ANSWERS, GuidanceLevel, MistakeKind, Scaffold, TeachingPolicy, WritingLevel
from mesh.tutoring.reading_level import reading_grade

# A skill with fewer judged answers has too few for a steady record.
_ENOUGH_FOR_SKILL = 3
# Where a reply may stand among replies at the grade, from 0 for the easiest to 1. Single replies vary: the ranges of
# neighbouring levels overlap, those of `BELOW` and `ABOVE` do not.
_PLACES: Final[Mapping[WritingLevel, tuple[float, float]]] = {
    WritingLevel.BELOW: (0.0, 0.4),
    WritingLevel.AT: (0.2, 0.8),
    WritingLevel.ABOVE: (0.6, 1.0),
}


class PolicyDimension(StrEnum):
    """What a policy decides."""

    READING = "reading"
    SCAFFOLD = "scaffold"
    HABIT = "habit"
    GUIDANCE = "guidance"
    INTEREST = "interest"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingNorm:
    """How hard replies at a student's grade are to read.

    Attributes:
        sentence_words: Mean words per sentence of each reply, ascending.
        grades: Reading grade of each reply, ascending.
    """

    sentence_words: tuple[float, ...]
    grades: tuple[float, ...]

    @classmethod
    def of(cls, replies: Iterable[str]) -> Self:
        """Returns the norm that replies set.

        Raises:
            ValueError: No reply has words.
        """
        worded = [reply for reply in replies if _has_words(reply)]
        if not worded:
            raise ValueError("a norm needs replies with words")
        return cls(
            sentence_words=tuple(sorted(map(_sentence_words, worded))), grades=tuple(sorted(map(reading_grade, worded)))
        )

    def place_of(self, reply: str) -> float:
        """Returns where a reply stands among them: the mean of its two ranks, 0 for the easiest, 1 for the hardest."""
        if not _has_words(reply):
            return 0.0
        return statistics.mean(
            (_rank(self.sentence_words, _sentence_words(reply)), _rank(self.grades, reading_grade(reply)))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What a policy has to say something about.

    Attributes:
        subject: Of the question.
        skill: Of the question.
        asks_for_hint: Whether the student is stuck; everybody then gets a first step.
        is_settled: Whether the answer is right; there is no mistake to avoid then.
    """

    subject: str
    skill: str
    asks_for_hint: bool = False
    is_settled: bool = False


# What a policy asks for in each dimension that it knows.
PolicyAims = Mapping[PolicyDimension, object]


def aims_of(policy: TeachingPolicy, occasion: Occasion) -> dict[PolicyDimension, object]:
    """Returns what a policy asks of the reply on an occasion, without the dimensions that are not known or not due."""
    aims: dict[PolicyDimension, object] = {}
    if policy.writing.level is not WritingLevel.UNKNOWN:
        aims[PolicyDimension.READING] = policy.writing.level
    scaffold = _scaffold_of(policy, occasion)
    if scaffold is not None and not occasion.asks_for_hint:
        aims[PolicyDimension.SCAFFOLD] = scaffold
    if policy.mistakes.kind is not MistakeKind.UNKNOWN and not occasion.is_settled:
        aims[PolicyDimension.HABIT] = policy.mistakes.kind
    if policy.guidance.level is not GuidanceLevel.UNKNOWN:
        aims[PolicyDimension.GUIDANCE] = policy.guidance.level
    if policy.interests:
        aims[PolicyDimension.INTEREST] = policy.interests
    return aims


def differing_aims(own: PolicyAims, other: PolicyAims) -> dict[PolicyDimension, object]:
    """Returns the own aims in the dimensions that both policies know and decide differently.

    Interests that both have do not tell them apart, so they are left out.
    """
    differing = {dimension: aim for dimension, aim in own.items() if dimension in other and aim != other[dimension]}
    interests = _names(differing.pop(PolicyDimension.INTEREST, ()))
    if single := tuple(name for name in interests if name not in _names(other[PolicyDimension.INTEREST])):
        differing[PolicyDimension.INTEREST] = single
    return differing


def is_shown(dimension: PolicyDimension, aim: object, reply: str, norm: ReadingNorm) -> bool:
    """Whether a reply shows what a policy asks for in a dimension.

    Args:
        dimension: The dimension.
        aim: What the policy asks for, of `aims_of` or `differing_aims`.
        reply: The reply; an empty one shows nothing.
        norm: How hard replies at the student's grade are.
    """
    if not _has_words(reply):
        return False
    checks: Mapping[PolicyDimension, Callable[[], bool]] = {
        PolicyDimension.READING: lambda: isinstance(aim, WritingLevel) and is_at_level(norm.place_of(reply), aim),
        PolicyDimension.SCAFFOLD: lambda: scaffold_in(reply) is aim,
        PolicyDimension.HABIT: lambda: aim in habits_in(reply) if aim is not MistakeKind.NONE else not habits_in(reply),
        PolicyDimension.GUIDANCE: lambda: guidance_in(reply) is aim,
        PolicyDimension.INTEREST: lambda: names_interest(reply, _names(aim)),
    }
    return checks[dimension]()


def is_at_level(place: float, level: WritingLevel) -> bool:
    """Whether a place among replies at the grade is what a level asks for."""
    low, high = _PLACES[level]
    return low <= place <= high


def scaffold_in(reply: str) -> Scaffold:
    """Reads the support that a reply gives: recap or one small first step, a step beyond the question, or neither.

    Where a reply has signs of both, the more frequent ones count; as many of each are neither.
    """
    recaps, extensions = _count(_RECAP, reply), _count(_EXTENSION, reply)
    if recaps == extensions:
        return Scaffold.STEADY
    return Scaffold.RECAP if recaps > extensions else Scaffold.EXTENSION


def habits_in(reply: str) -> frozenset[MistakeKind]:
    """Reads against which kinds of mistakes a reply advises a habit."""
    return frozenset(kind for kind, words in _HABITS.items() if _count(words, reply))


def guidance_in(reply: str) -> GuidanceLevel:
    """Reads whether a reply offers more help, leaves the rest to the student, or neither."""
    if _count(_OFFERS, reply):
        return GuidanceLevel.MUCH
    return GuidanceLevel.LITTLE if _count(_LEAVES, reply) else GuidanceLevel.USUAL


def names_interest(reply: str, interests: Sequence[str]) -> bool:
    """Whether a reply names one of the interests, in the singular or the plural."""
    text = _plain(reply)
    return any(re.search(rf"\b{re.escape(_stem(name))}(?:s|es)?\b", text) for name in interests)


_SMALL: Final = r"(?:small|little|tiny|short|easy|simple|single|first)"
_PART: Final = r"(?:part|step|piece|bit|thing|word|task)"
_RECAP: Final = re.compile(
    rf"\b(?:one|a|the|this|that|just one) {_SMALL}(?: \w+)? {_PART}\b|\bjust (?:one|a|the) (?:\w+ )?{_PART}\b"
    r"|\b(?:the|that) first (?:part|step|piece|bit|thing)\b|\b(?:which|what) part can\b"
    r"|\brecap\b|\bremember\b|\bremind\b|\b(?:go|look|think|step) back\b|\bback to (?:the|what)\b|\bonce more\b"
    r"|\b(?:let us|let's) (?:go over|look at .* again)\b|\breview\b|\b(?:start|begin) (?:with|from|by|small)\b"
    r"|\bone (?:step|part|thing) at a time\b|\bstep by step\b|\b(?:asks?|comes?|is|do|say|read|find|try) \w* ?first\b"
    r"|\bfirst,|^first\b|\bwe (?:have )?(?:already )?(?:learned|learnt|saw)\b"
)
_EXTENSION: Final = re.compile(
    r"\bfurther\b|\bbeyond\b|\bchalleng\w+|\b(?:harder|trickier|tougher) (?:one|question|problem|case|example)\b"
    r"|\b(?<!about )(?:another|one more) (?:example|case|question|problem|way|place|situation)\b"
    r"|\bnext level\b|\bextend\b|\bextra\b"
    r"|\ba new (?:example|case|question|problem|idea)\b|\b(?:something|anything) (?:new|harder)\b|\bwhat if\b"
    r"|\bwhat (?:would|might) (?:\w+ ){1,4}if\b|\bif (?:one|some) ?thing (?:changed|changes|were different)\b"
    r"|\bhappen if\b|\bexceptions?\b|\b(?:question|it|task|problem) harder\b|\bstretch\b|\bpredict\b"
    r"|\b(?:does not|doesn't|would not|stops?) (?:hold|be true)\w*\b"
    r"|\b(?:case|example|time) where (?:it|this|that) is not\b"
    r"|\bchange (?:one|some) ?thing (?:in|about|of)\b|\bmake up (?:a|your own) (?:question|problem)\b"
    r"|\b(?:link|connect|compare|apply) (?:it|this|that)\b"
)
_HABITS: Final[Mapping[MistakeKind, re.Pattern[str]]] = {
    MistakeKind.BLANK: re.compile(
        r"\bguess\w*\b|\b(?:write|put|jot|note|get|list)\b(?: \w+){0,4}? (?:one|a|any|some|first|your)(?: \w+){0,2}? "
        r"(?:thing|idea|word|thought|fact)s?\b(?! of the question)|\bthing (?:that )?you (?:do )?(?:already )?know\b"
        r"|\bdo(?: not|n't) leave (?:it|this|the)\b|\beven if you are not sure\b|\bwrite something\b"
        r"|\bwhat you (?:do |already )+know\b"
    ),
    MistakeKind.INCOMPLETE: re.compile(
        r"\b(?:each|every|all(?: the)?|both|other|second|missing) (?:\w+ )?(?:parts?|halves|half|pieces?)\b"
        r"|\bpart by part\b|\bpart (?:is|may be|could be|was) (?:still )?(?:missing|left)\b|\bwhole question\b"
        r"|\b(?:give|add|say|write|tell) (?:me )?(?:a|the|one|your) (?:\w+ )?reasons?\b"
        r"|\b(?:say|tell|add|explain) why\b|\badd more\b|\bcomplete (?:answer|sentence)\b"
        r"|\bleft (?:anything|something|any part) out\b|\banything (?:is )?(?:missing|left)\b"
    ),
    MistakeKind.REVERSED: re.compile(
        r"\bwhich way\b|\bway (?:a)?round\b|\bother way\b|\bopposite\b|\bback to front\b|\bbackwards?\b|\bswap\w*\b"
        r"|\bswitch(?:ed)?\b|\breversed?\b|\bturned around\b|\b(?:say|read) (?:it|the answer|your answer) back\b"
        r"|\bwhich (?:one )?(?:\w+ )?(?:changes|causes|comes first|goes up|is more)\b|\bcause and (?:the )?effect\b"
        r"|\bwhat (?:changes|causes|makes)\b"
        r"|\bpoint to what\b|\b(?:more|up) or (?:less|down)\b"
    ),
    MistakeKind.OFF_TOPIC: re.compile(
        r"\bkey ?words? (?:of|in) the (?:question|task)\b|\bunderlin\w+\b|\bcircle the\b|\bhighlight\b"
        r"|\bwords? (?:of|from|in) the question\b|\babout the question\b"
        r"|\b(?:stay|stick|keep)(?: \w+){0,3} (?:to|on|with) the question\b"
        r"|\bwhat (?:does )?the question (?:really )?(?:asks?|wants?|is about)\b(?! first)"
    ),
    MistakeKind.MISSPELT: re.compile(
        r"\bspel(?:l|t)\w*\b|\bletter by letter\b|\bsound (?:it|the word) out\b|\bletters\b|\b(?:each|every) letter\b"
    ),
}
_HARD: Final = r"(?:hard|stuck|unclear|confus\w+)"
_OFFERS: Final = re.compile(
    r"\bask (?:me|for help|again|about|your teacher|a grown)\b|\bi am here\b|\bi'm here\b|\blet me know\b|\bhelp you\b"
    rf"|\b(?:tell|show) me (?:\w+ ){{0,3}}?(?:what|which|where|if|when) (?:\w+ ){{0,4}}?{_HARD}\b"
    r"|\bi(?:'ll| can| will| could)(?: \w+){0,2}? (?:help|show|explain|give|guide)\b|\band i help\b"
    rf"|\bif (?:you|it|this|anything|a word|a part) (?:\w+ ){{0,2}}?(?:need|help|{_HARD})\b|\bsay where you\b"
    r"|\bneed (?:more |some |any )?help\b|\bwhere (?:do )?you (?:get|are) stuck\b|\bwe can (?:\w+ ){0,4}?together\b"
)
_LEAVES: Final = re.compile(
    r"\bon your own\b|\bby yourself\b|\b(?:do|try|finish|solve|work|find)(?: \w+){0,3} yourself\b|\bis yours\b"
    r"|\byou can (?:do|finish|take|go on|manage)\b(?: \w+){0,3}? (?:rest|from here|now)\b"
    r"|\bwithout (?:help|me|hints?)\b|\bup to you\b|\bover to you\b"
)


def _scaffold_of(policy: TeachingPolicy, occasion: Occasion) -> Scaffold | None:
    """The support in the occasion's skill; None where the record is too short."""
    if policy.scaffolding.judged < ENOUGH_ANSWERS:
        return None
    place = (occasion.subject, occasion.skill)
    for support in policy.scaffolding.skills:
        if (support.subject, support.skill) == place:
            is_short = support.scaffold is Scaffold.STEADY and support.judged < _ENOUGH_FOR_SKILL
            return None if is_short else support.scaffold
    return None


def _names(aim: object) -> tuple[str, ...]:
    return aim if isinstance(aim, tuple) else ()


def _stem(name: str) -> str:
    plain = _plain(name)
    return plain[:-1] if plain.endswith("s") and not plain.endswith("ss") else plain


def _count(words: re.Pattern[str], reply: str) -> int:
    return sum(len(words.findall(_plain(sentence))) for sentence in split_sentences(reply))


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("\u2019", "'").split())


def _has_words(reply: str) -> bool:
    return any(letter.isalpha() for letter in reply)


def _sentence_words(reply: str) -> float:
    sentences = split_sentences(reply)
    return sum(map(count_words, sentences)) / len(sentences)


def _rank(ascending: Sequence[float], number: float) -> float:
    """The share of numbers below one, equal ones by half."""
    return (bisect_left(ascending, number) + bisect_right(ascending, number)) / 2 / len(ascending)
