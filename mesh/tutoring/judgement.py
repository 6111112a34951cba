"""Reads from a reply whether it judges an answer, and how.

A checker for measurements, gates and lessons. It reads the words of a reply alone and is used on none while it is
decoded: a model learns when to judge, and is not filtered.
"""

import re
from enum import StrEnum

from mesh.tutoring.form import split_sentences


class Judgement(StrEnum):
    """What a reply says of an answer."""

    RIGHT = "right"
    PARTLY_RIGHT = "partly right"
    WRONG = "wrong"
    NONE = "none"


# The sentences in which a tutor states a verdict; later ones explain, and say "right angle" or "a common mistake".
_VERDICT_SENTENCES = 2

_PARTLY = re.compile(
    r"\b(?:partly|partially|half|almost|nearly|mostly) (?:right|correct|there|complete|done|true)\b"
    r"|\b(?:part|piece|half|some|one bit) of (?:it|the answer|this|your answer|what)\b|\bon (?:your|the) way\b"
    r"|\b(?:one|two|first|second|a big|big|key|main) (?:part|half|piece)\b|\bnot (?:the )?(?:whole|complete|finished)\b"
    r"|\b(?:is|are|still) missing\b|\bis close\b|\bvery close\b|\bso close\b|\bright so far\b|\bgood start\b",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"\b(?:not|isn't|aren't|wasn't|don't|doesn't|didn't|never|no longer)\s+(?:\w+\s+){0,2}?"
    r"(?:right|correct|true|the answer|there|it|match|fit|work|add up|answer|agree|hold|yet)\b"
    r"|\bnot (?:quite|yet|exactly)\b|\bincorrect\b|\bwrong\b|\bmix(?:ed|es)?[ -]up\b|\bmistake\b|\bslip(?:ped)?\b"
    r"|\bno answer\b|\boff (?:the )?topic\b|\banother (?:question|topic)\b|\b(?:other|different) (?:question|topic)\b"
    r"|\bblank\b|\bempty\b|\b(?:look|try|think|go over|work|count|read)\b[^.]{0,40}\bagain\b"
    r"|\bnothing (?:is )?written\b",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\b(?:right|correct|exactly|yes|yep|accurate|spot on|perfect|true|well done|(?:good|great|nice|super|fine|lovely|"
    r"strong|excellent|solid|clear|careful|clever) (?:job|work|thinking|answer|reasoning|explanation|reading|eye))\b"
    r"|\byou (?:got|have|found|nailed|solved|named|did) (?:it|this)\b",
    re.IGNORECASE,
)
# Phrases that judge wherever they stand.
_JUDGES = re.compile(
    r"\byour (?:answer|response|solution) (?:is|was|looks|seems)\b|\b(?:you are|you're|that is|that's|this is) "
    r"(?:absolutely |exactly |quite |not |partly |almost )*(?:right|correct|incorrect|wrong)(?! (?:to|for|about))\b"
    r"|\bwell done\b|\b(?:good|great|nice|excellent|super) (?:job|work)\b|\byou got it\b|\bspot on\b"
    r"|\bnot quite right\b|\bcorrect[!.]|^(?:yes|exactly|correct|right|no)[,!.]",
    re.IGNORECASE,
)


def judgement_in(reply: str) -> Judgement:
    """Returns the verdict that a reply to an answer states in its first sentences."""
    head = " ".join(split_sentences(reply)[:_VERDICT_SENTENCES]).replace("\u2019", "'")
    if _PARTLY.search(head):
        return Judgement.PARTLY_RIGHT
    if _WRONG.search(head):
        return Judgement.WRONG
    return Judgement.RIGHT if _RIGHT.search(head) else Judgement.NONE


def judges(reply: str) -> bool:
    """Whether a reply judges an answer anywhere; for replies to those who gave none."""
    return any(_JUDGES.search(sentence.replace("\u2019", "'")) for sentence in split_sentences(reply))


def contains_answer(reply: str, answer: str) -> bool:
    """Whether a reply says an answer: its words in this order, whatever stands around them."""
    return bool(answer.strip()) and f" {_words(answer)} " in f" {_words(reply)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:[.,/:'][^\W_]+)*", text.lower().replace("\u2019", "'")))
