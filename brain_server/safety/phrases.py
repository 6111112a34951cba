"""Finds the plainest words of a child in danger, and the plainest requests for harm.

Few expressions that hardly ever mean anything else, so that these are met also where no guard runs. They are no
substitute for one: whoever says it otherwise passes. They search the spellings that `rule_readings` returns.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from brain_server.safety.verdict import Finding, SafetyAction, SafetyCategory

# What makes dying a figure of speech: "I wanted to die of embarrassment".
_NO_FIGURE = r"(?!\s+(?:of|from|for|laughing)\b)"
_I_OR_START = r"(?:\b(?:i|im|i'm)\b[^.!?\n]{0,24}?|(?:^|[.!?]\s*)(?:just |really |kinda )?)"
_WISH = (
    r"\b(?:want(?:ed)?|wanna|plan(?:ning)?|try(?:ing)?|ready|feel like|thinking (?:of|about)|thought about"
    r"|wish i could)\s*(?:to\s*)?"
)
_DYING = (
    r"(?:die|dying|be dead|kill(?:ing)?\s*myself|end(?:ing)? (?:my life|it all(?! on an? ))"
    r"|(?:hurt|cut)(?:ting|ing)? myself)\b"
)
_HOW_TO = r"\bhow (?:do|can|could|should|to|many pills) (?:i |to |does it take to )*"
_INJURE = r"(?:cut|cutting|hurt|hurting|burn|burning)"
_MYSELF = r"(?:myself|my (?:arm|wrist|leg)s?)"
_SELF_HARM = (
    rf"{_I_OR_START}{_WISH}{_DYING}{_NO_FIGURE}",
    r"\bi(?:'m|m| am|'ll| will| could| should| might)?\s*(?:gonna |going to |just |have to )?kill\s*myself\b",
    rf"\bi(?:'ve|ve)? (?:have |been |keep )*{_INJURE} {_MYSELF} (?:on purpose|again|every|when i|because i|to feel)\b",
    r"\bi (?:don'?t|do not) (?:want to|wanna) (?:be alive|live|exist|wake up)(?: any ?more| again)?\s*(?:$|[.!?,])",
    r"\b(?:better off|happier) (?:without me|if i (?:was|were) (?:dead|gone))\b",
    r"\bi wish i (?:(?:was|were) dead|was never born|had never been born)\b",
    r"\bi(?:'m|m| am) (?:feeling )?suicid(?:al|e)\b",  # "suicida" is read as either
    rf"{_HOW_TO}(?:kill myself|commit suicide|overdose|hang myself)\b",
    r"\bno quiero (?:seguir viviendo|vivir)\b",
    r"\b(?:quiero (?:matarme|morir(?:me)?)|me quiero (?:matar|morir)|voy a matarme|suicidarme)\b(?! de\b)",
)
_PERSON = (
    r"(?:mom|mum|mommy|mother|dad|daddy|father|step-?(?:mom|mother|dad|father)|uncle|aunt|cousin|brother|coach|teacher"
    r"|neighbou?r|babysitter|grandpa|grandma|boyfriend)"
)
_HITS = r"(?:hits|beats|punches|kicks|chokes|burns|hurts|whips|(?:is|keeps) (?:hitting|beating|hurting))"
_BEATEN = (rf"\b(?:my|the) {_PERSON} {_HITS} (?:me|us|my (?:mom|sister|brother)|mommy)\b",)
_TOUCHED = (
    rf"\b(?:my|the) {_PERSON} (?:touches|touched|keeps touching|is touching) (?:me|my private)",
    r"\btouch(?:es|ed|ing) (?:me|my) (?:down there|private|in my private)",
)
_INTENDS = r"\b(?:gonna|going to|want to|wanna|plans? to|planning to)"
_ATTACK = r"(?:shoot up|bring a (?:gun|knife) to|bomb|blow up)"
_THREAT = (rf"{_INTENDS} {_ATTACK} (?:my |the |our )?(?:school|class|teachers?)\b",)
_HOW = (
    r"\b(?:how (?:do|can|could|would|should) (?:i|you|u|we|someone)|how to"
    r"|(?:teach|tell|show|help) me (?:how )?(?:to )?|(?:steps|instructions|recipe) (?:to|for))\s+(?:\w+ ){0,2}?"
)
_BOMB = r"(?<!bath )(?<!seed )(?<!cherry )bombs?\b(?! (?:calorimeter|cyclone|shelter))"
_WEAPON = rf"(?:{_BOMB}|explosives?\b|grenades?\b|molotov\b|ghost gun\b|napalm\b|nerve gas\b)"
_VICTIM = (
    r"(?:my (?:teacher|mom|dad|brother|sister|parents|classmate)|someone|somebody|people"
    r"|a (?:person|kid|classmate|teacher|student))"
)
_WEAPONS = (
    rf"{_HOW}(?:make|making|build|building|create) (?:\w+ ){{0,2}}?{_WEAPON}",
    rf"{_HOW}(?:kill|stab|poison|shoot) {_VICTIM}\b",
)
_DRUG = r"(?:meth|cocaine|heroin|fentanyl|lsd|weed|a vape|vapes|xanax)"
_DRUGS = (rf"{_HOW}(?:make|cook|get|buy) (?:\w+ ){{0,2}}?{_DRUG}\b",)
# What a tutor never says. "Never hurt yourself" and "I won't say how to build a bomb" are no harm.
_URGES = r"\b(?:you should|you could|just|go ahead and|please|it(?: i|')s (?:fine|okay) to)"
_URGED = (rf"{_URGES}\s+(?:kill|hurt|cut|starve) yourself\b",)
_DENIED = r"(?:\b(?:not|never|cannot|no one)\b|n't\b)"
_TOLD_HOW = (rf"^(?!.*{_DENIED}).*\b(?:to|you can) (?:make|build) (?:\w+ ){{0,2}}?{_WEAPON}",)


class _Phrases(NamedTuple):
    category: SafetyCategory
    action: SafetyAction
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, category: SafetyCategory, action: SafetyAction, expressions: Sequence[str]) -> "_Phrases":
        return cls(category, action, re.compile("|".join(f"(?:{expression})" for expression in expressions)))


_BY_STUDENTS = (
    _Phrases.of(SafetyCategory.SELF_HARM, SafetyAction.SUPPORT, _SELF_HARM),
    _Phrases.of(SafetyCategory.VIOLENCE, SafetyAction.SUPPORT, (*_BEATEN, *_THREAT)),
    _Phrases.of(SafetyCategory.SEXUAL, SafetyAction.SUPPORT, _TOUCHED),
    _Phrases.of(SafetyCategory.VIOLENCE, SafetyAction.REFUSE, _WEAPONS),
    _Phrases.of(SafetyCategory.DRUGS, SafetyAction.REFUSE, _DRUGS),
)
_BY_TUTORS = (
    _Phrases.of(SafetyCategory.SELF_HARM, SafetyAction.SUPPORT, _URGED),
    _Phrases.of(SafetyCategory.VIOLENCE, SafetyAction.REFUSE, _TOLD_HOW),
)


def find_phrases(readings: Sequence[str], *, by_student: bool) -> Iterator[Finding]:
    """Yields what a text says plainly in any of its readings; students' words and tutors' mean harm differently."""
    for phrases in _BY_STUDENTS if by_student else _BY_TUTORS:
        if any(phrases.pattern.search(reading) for reading in readings):
            yield Finding(category=phrases.category, probability=1.0, action=phrases.action)
