"""Reads from a reply whether it judges an answer, and how.

A checker for measurements, gates, lessons and the finished feedback of `Assess`. It reads the words of a reply alone,
and never while the reply is decoded: a model learns when to judge, and is not filtered.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import split_sentences


class Judgement(StrEnum):
    """What a reply says of an answer."""

    RIGHT = "right"
    PARTLY_RIGHT = "partly right"
    WRONG = "wrong"
    NONE = "none"


# The sentences in which a tutor states a verdict; later ones explain, and say "right angle" or "a common mistake".
_VERDICT_SENTENCES = 2

_PRAISED = (
    r"(?:good|great|nice|super|fine|lovely|strong|excellent|solid|clear|careful|clever|wonderful|fantastic|sharp) "
    r"(?:job|work|thinking|answer|reasoning|explanation|reading|eye)"
)
# "Right" as a side, a moment or the part of a name says nothing of an answer, and neither does "the right answer is 7".
_RIGHT_WORD = (
    r"(?:right|correct|accurate|true|spot on)(?!-)(?! (?:angle|triangle|side|hand|now|next|after|before|above|below"
    r"|beside|away|at|to|word|answer|order|place|of)s?\b)"
)
_DENIES = r"(?:not|isn't|aren't|wasn't|weren't|don't|doesn't|didn't|can't|cannot|never|no longer)"

# A reply that begins like this confirms, unless it denies or limits in the same breath.
_CONFIRMS_FIRST = re.compile(
    rf"^(?:oh|wow|and)?[, ]*(?:yes|yep|yeah|indeed|exactly|correct|right|perfect|spot on|well done|good(?=[:!.])"
    rf"|{_PRAISED})\b(?!-)"
    r"(?! (?:now|here|next|after|before|away|angle|triangle|side|order|answer)s?\b)(?!,? but\b)",
    re.IGNORECASE,
)
_PARTLY_FOR_SURE = re.compile(
    r"\b(?:partly|partially|half|almost|nearly|mostly) (?:right|correct|there|complete|done|true)\b"
    r"|\b(?:part|piece|half|some|one bit) of (?:it|the answer|this|your answer|what)\b|\bon (?:your|the|its) way\b"
    r"|\bon the right (?:track|path)\b"
    r"|\bnot (?:the )?(?:whole|complete|finished)\b(?! (?!answer|story|picture|idea|reason|list)\w)"
    r"|\b(?:is|are|still) missing\b|\b(?:right|true|correct) so far\b|\bgood start\b"
    r"|\bonly (?:half|part|a part) of (?:it|the (?:answer|question|task))\b",
    re.IGNORECASE,
)
_PARTLY = re.compile(
    r"\b(?:is|are|have|has|'ve|got|found|gave|give[sn]?|named?|caught|wrote|know|see|mean|make[sn]?|covers?|identified"
    r"|described|answered|explained|contains?|includes?|forms?) (?:\w+ ){0,2}?(?:one|two|first|second|big|key|main) "
    r"(?:part|half|piece)\b(?! again)"
    r"|\bhalf of (?:the|your) \w+ is (?:done|there|finished|complete|right|correct|true)\b"
    r"|\b(?:one|first|second|this|that) (?:part|half|piece) (?:is|was) (?:right|correct|done|there)\b"
    r"|\b(?:one|two|three) of (?:your|the|its|these) (?:two|three|four|five)\b"
    r"|\byou (?:have|found|gave|named?|wrote|know|got) (?:one|two|three) of (?:the|its|these)\b"
    r"|\bthe (?:second|other|next|rest) (?:\w+ ){0,2}?(?:needs?|waits)\b"
    r"|\b(?:is|was|that's|it's|very|so|really|pretty) close\b|^close\b",
    re.IGNORECASE,
)
_WRONG_FOR_SURE = re.compile(
    rf"\b{_DENIES}\s+(?:\w+\s+){{0,2}}?(?:right|correct|true|accurate|the answer)\b(?! away\b)"
    rf"|\b{_DENIES} (?:yet |really )?answer (?:the|this|that|what|why|how)\b"
    r"|\bnot (?:quite|exactly)\b|\bincorrect\b|\b(?:is|was|are|that's|it's|answer) wrong\b",
    re.IGNORECASE,
)
_WRONG = re.compile(
    rf"\b{_DENIES}\s+(?:\w+\s+){{0,2}}?(?:there|it|match|fit|work|add up|answer|agree|hold|yet)\b"
    rf"|\bnot\b[^.;:]{{0,40}}\byet\b|\b{_DENIES} (?:make|give|equal)\b|\b(?:is|are) not (?:the \w+|\d)|^no\b[,.!]"
    rf"|^{_PRAISED},? but\b|\bwrong\b|\bmix(?:ed|es)?[ -]up\b|\bmistake\b|\bslip(?:ped)?\b"
    r"|\bno answer\b|\boff (?:the )?topic\b|\banother (?:question|topic)\b|\b(?:other|different) (?:question|topic)\b"
    r"|\bis (?:a different|another) (?:\w+ )?(?:word|term|thing|process|idea|part|place|number|shape|name|kind)\b"
    r"|\bblank\b|\bempty\b|\b(?:look|try|think|go over|work|count|read|check)\b[^.]{0,40}\bagain\b"
    r"|\bnothing (?:is )?written\b|\b(?:good|nice) try\b|\bbut (?:the|its) (?:right|correct) \w+ (?:is|are)\b"
    r"|\btoo (?:big|small|high|low|large|many|few|much|long|short|far)\b",
    re.IGNORECASE,
)
_RIGHT_FOR_SURE = re.compile(
    rf"(?:\bis|\bare|\bwas|\bwere|'s|'re)(?: (?:both|all|exactly|quite|absolutely|completely|indeed|perfectly))* "
    rf"{_RIGHT_WORD}|\b(?:is|are) (?:in |at )?the (?:right|correct) \w+|\byou (?:got|nailed) (?:it|this)\b",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    rf"\b(?<!the )(?<!a ){_RIGHT_WORD}\b|\b(?:exactly|perfect|well done|correctly|accurately|perfectly|{_PRAISED})\b"
    r"|\byou (?:have|found|solved|named|did) (?:it|this)\b|\bwell (?:said|spotted|counted|reasoned)\b"
    r"|^(?:that|this|it) (?:works|holds|fits)\b|\byour (?:\w+ )?(?:works|holds|matches|fits)\b",
    re.IGNORECASE,
)

# Phrases that judge an answer wherever they stand.
_VALUED = r"(?:right|correct|incorrect|wrong|accurate|clear|great|excellent|perfect|good|strong|complete)"
_HOW_MUCH = (
    r"(?:(?:absolutely|exactly|quite|not|partly|partially|almost|mostly|nearly|completely|really|very|so|all|both) )*"
)
_JUDGES = re.compile(
    rf"\byour (?:\w+ )?(?:answer|response|solution|picture|model|work|reasoning|explanation|sentence|sum|result|total"
    rf"|drawing) (?:is|are|was|looks|seems) {_HOW_MUCH}{_VALUED}\b(?!-)"
    rf"|\b(?:you are|you're|that is|that's|this is) {_HOW_MUCH}(?:right|correct|incorrect|wrong)\b(?!-)"
    r"(?! (?:to|for|about|next|above|below|under|beside|at|in|on|of|after|before|now|here|angle|triangle|side)s?\b)"
    r"|\bwell done\b(?! (?:for|on) \w+ing\b)"
    r"|\b(?:good|great|nice|excellent|super) (?:job|work)\b(?! (?:for |on )?\w+ing\b)"
    r"|\byou got it\b|\bspot on\b|\bnot quite right\b|^(?:exactly|correct|right|perfect|not quite|not yet)[,!.:]"
    r"|^yes\b.* (?:is|are) (?:right|correct)\b|\byou (?:are|were) on your way\b|\bpart of (?:it|your answer) is\b"
    r"|\byou are (?:partly|nearly|almost) (?:right|there)\b",
    re.IGNORECASE,
)
# Phrases that judge an answer where a verdict stands: in the first sentence.
_JUDGES_FIRST = re.compile(
    rf"(?:\bis|'s|\byou are|\byou're) {_HOW_MUCH}(?:(?:in )?the )?(?:right|correct|accurate|incorrect)\b(?!-)"
    r"(?! (?:to|for|about|next|above|below|under|beside|at|in|on|of|after|before|now|angle|triangle|side|with)s?\b)"
    r"|\b(?:not|isn't|aren't) (?:\w+ )?(?:right|correct|accurate)\b"
    r"|\b(?:does not|doesn't|do not|don't) (?:quite )?(?:match|fit|hold|answer (?:the|this|that|what|why|how))\b"
    r"|\bnot (?:quite )?(?:the answer|it|the one|the word)\b"
    r"|\b(?:partly|partially|half|almost|nearly|mostly) (?:right|correct|there|complete|done|true)\b"
    r"|\b(?:part|piece|half|some|one bit) of (?:it|the answer|your answer)\b|\b(?:is|are) still missing\b"
    r"|\b(?:right|correct) so far\b",
    re.IGNORECASE,
)
# What stands behind one of these is no verdict: "check whether your answer is right", "the step you think is wrong".
_SUPPOSES = re.compile(
    r"\b(?:if|whether|when|until|once|unless|sure|why|how|what|which|who|where|suppose|imagine|maybe|check that"
    r"|see that|show that|say|says|said|(?<!i )think|thinks|thought|means?|someone|even though|tell)\b[^,;:.!?]*$",
    re.IGNORECASE,
)


# What a reply may state of an answer whose verdict it was told. In a blank one there is nothing to judge or to praise.
_STATEMENTS: Mapping[AnswerVerdict, frozenset[Judgement]] = MappingProxyType(
    {
        AnswerVerdict.CORRECT: frozenset({Judgement.RIGHT}),
        AnswerVerdict.PARTIALLY_CORRECT: frozenset({Judgement.PARTLY_RIGHT}),
        AnswerVerdict.INCORRECT: frozenset({Judgement.WRONG}),
        AnswerVerdict.BLANK: frozenset({Judgement.NONE, Judgement.WRONG}),
        AnswerVerdict.OFF_TOPIC: frozenset({Judgement.NONE, Judgement.WRONG}),
    }
)

# What is the opposite of a verdict. A part that is right and a part that is wrong may both be named of an answer that
# is right in part.
_OPPOSITES: Mapping[AnswerVerdict, Judgement] = MappingProxyType(
    {
        AnswerVerdict.CORRECT: Judgement.WRONG,
        AnswerVerdict.INCORRECT: Judgement.RIGHT,
        AnswerVerdict.BLANK: Judgement.RIGHT,
        AnswerVerdict.OFF_TOPIC: Judgement.RIGHT,
    }
)


def agrees(reply: str, verdict: AnswerVerdict) -> bool:
    """Whether a reply states the verdict that it was told."""
    return judgement_in(reply) in _STATEMENTS[verdict]


def contradicts(reply: str, verdict: AnswerVerdict) -> bool:
    """Whether a reply states the opposite of a verdict. A reply that states no verdict contradicts none."""
    return judgement_in(reply) is _OPPOSITES.get(verdict)


def judgement_in(reply: str) -> Judgement:
    """Returns the verdict that a reply to an answer states in its first sentences.

    What surely limits or denies counts before what confirms: "Well done, but that is not right" says that it is wrong.
    What only may deny counts after it: "Yes, and you made no mistake" says that it is right.
    """
    head = " ".join(split_sentences(reply)[:_VERDICT_SENTENCES]).replace("\u2019", "'")
    readings = (
        (_PARTLY_FOR_SURE, Judgement.PARTLY_RIGHT),
        (_WRONG_FOR_SURE, Judgement.WRONG),
        (_CONFIRMS_FIRST, Judgement.RIGHT),
        (_PARTLY, Judgement.PARTLY_RIGHT),
        (_RIGHT_FOR_SURE, Judgement.RIGHT),
        (_WRONG, Judgement.WRONG),
        (_RIGHT, Judgement.RIGHT),
    )
    return next((judgement for words, judgement in readings if words.search(head)), Judgement.NONE)


def judges(reply: str) -> bool:
    """Whether a reply judges an answer anywhere; for replies to those who gave none.

    "Yes" and "no" alone don't judge: they answer a question.
    """
    sentences = [sentence.replace("\u2019", "'") for sentence in split_sentences(reply)]
    return any(_states(_JUDGES_FIRST, sentence) for sentence in sentences[:1]) or any(
        _states(_JUDGES, sentence) for sentence in sentences
    )


def contains_answer(reply: str, answer: str) -> bool:
    """Whether a reply says an answer: its words in this order, whatever stands around them."""
    return bool(answer.strip()) and f" {_words(answer)} " in f" {_words(reply)} "


def _states(judgement: re.Pattern[str], sentence: str) -> bool:
    """Whether a sentence states a judgement rather than asks or supposes it."""
    return any(not _SUPPOSES.search(sentence[: match.start()]) for match in judgement.finditer(sentence))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:[.,/:'][^\W_]+)*", text.lower().replace("\u2019", "'")))
