"""The frame of a tutor's reply: what stands around the sentences that are taught, by situation, manner and profile.

A small model must not make up whether an answer was right, or what to do next: the frame says both, from what the
prompt tells and from the student's teaching policy. The sentences between are distilled. Knows nothing of models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cloning_server.examples import phrases
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.fidelity import content_words
from cloning_server.examples.phrases import picked
from cloning_server.examples.situations import Situation, draw_of
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import LONG_WORD_LETTERS, FormRules, split_sentences
from mesh.tutoring.policy import Scaffold, WritingLevel
from mesh.tutoring.profile import Disability
from mesh.tutoring.teaching import rules_of

# Letters of a word that is worth using for its own sake.
_TERM_LETTERS = 6
# More sentences of a teaching policy in a row read as a pile of orders.
_MOST_ADVICE = 2
# Of so many replies that could give more advice, one does: each kind then stays in two of three replies.
_FULL_SHARE = 3


class _Worth(IntEnum):
    """Which sentence goes in first where a reply may have only so many: the one that is worth most."""

    STEP = 0
    TERM = 1
    GUIDANCE = 2
    INTEREST = 3
    HABIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    text: str
    worth: _Worth


def frame_reply(brief: ReplyBrief, body: Sequence[str]) -> str:
    """Returns the whole reply around the distilled sentences, laid out as the student's form rules ask.

    A sentence of the teaching policy stays out where the reply would break a rule with it: a small child's reply is
    short, and an interest of many words fits no short sentence. It also stays out where there is enough advice.
    """
    rules = rules_of(brief.profile)
    offered = _select(tuple(_manner(brief, body)), brief.draw)
    chosen: list[_Part] = []
    for part in sorted(offered, key=lambda part: part.worth, reverse=True):
        longer = [*chosen, part]
        if not rules.violations(_compose(brief, body, [each.text for each in offered if each in longer], rules)):
            chosen = longer
    return _compose(brief, body, [part.text for part in offered if part in chosen], rules)


def asking_sentence(question: str) -> str:
    """Returns what a question asks: its last sentence with a question mark, or its last one; its story stays out."""
    sentences = split_sentences(question)
    asking = [sentence for sentence in sentences if sentence.rstrip("\"')").endswith("?")] or sentences
    return asking[-1] if asking else question


def _select(offered: tuple[_Part, ...], draw: int) -> tuple[_Part, ...]:
    """Leaves out advice beyond two sentences: first the step, then the interest and the guidance in turn.

    The habit stays. The term belongs to what is taught and is no advice.
    """
    advice = {part.worth for part in offered} - {_Worth.TERM}
    if len(advice) > _MOST_ADVICE:
        advice.discard(_Worth.STEP)
    if len(advice) > _MOST_ADVICE:
        turn = draw_of(f"{draw} advice") % _FULL_SHARE
        advice -= ({_Worth.GUIDANCE}, {_Worth.INTEREST}, set[_Worth]())[turn]
    return tuple(part for part in offered if part.worth in advice | {_Worth.TERM})


def _compose(brief: ReplyBrief, body: Sequence[str], manner: Sequence[str], rules: FormRules) -> str:
    """Puts what is taught and the sentences of the teaching policy between opener and closing question."""
    opener = _opener(brief)
    closing = [phrases.closing_question(_support(brief), brief.profile.learning_style, draw=brief.draw)]
    if brief.profile.disability is Disability.AUTISM:
        closing.append(picked(phrases.END_MARKERS, brief.draw))
    calm = _calm(brief, rules, " ".join((opener, *body, *manner, *closing)))
    return _lay_out(" ".join(filter(None, (opener, calm))), (*body, *manner), " ".join(closing), rules=rules)


def _opener(brief: ReplyBrief) -> str:
    if brief.situation is Situation.FEEDBACK and brief.verdict is not None:
        return picked(phrases.VERDICT_OPENERS[brief.verdict], brief.draw)
    return picked(phrases.OPENERS[brief.situation], brief.draw)


def _calm(brief: ReplyBrief, rules: FormRules, text: str) -> str:
    """A sentence that reassures, where the profile asks for one and the reply has none."""
    if not FormRules(required_phrases=rules.required_phrases).violations(text):
        return ""
    return picked(phrases.CALM, brief.draw)


def _manner(brief: ReplyBrief, body: Sequence[str]) -> Iterator[_Part]:
    """The sentences that the teaching policy asks for, in the order in which a student can follow them.

    The term stands next to what is taught, a step back before the habit, a step further behind the example.
    """
    manner, draw, support = brief.manner, brief.draw, _support(brief)
    if manner.writing is WritingLevel.ABOVE and (term := _term_of(body)):
        yield _Part(text=picked(phrases.TERMS, draw).format(term=term), worth=_Worth.TERM)
    # The opener of a hint is a first step, and behind a right answer the closing question is enough of one.
    if support is Scaffold.RECAP and brief.situation is not Situation.HINT and not _is_settled(brief):
        yield _Part(text=picked(phrases.SMALL_STEPS[support], draw), worth=_Worth.STEP)
    if manner.mistake in phrases.HABITS and not _is_settled(brief):
        yield _Part(text=picked(phrases.HABITS[manner.mistake], draw), worth=_Worth.HABIT)
    if manner.interest:
        yield _Part(text=picked(phrases.INTERESTS, draw).format(interest=manner.interest), worth=_Worth.INTEREST)
    if support is Scaffold.EXTENSION:
        yield _Part(text=picked(phrases.SMALL_STEPS[support], draw), worth=_Worth.STEP)
    if manner.guidance in phrases.GUIDANCE:
        yield _Part(text=picked(phrases.GUIDANCE[manner.guidance], draw), worth=_Worth.GUIDANCE)


def _support(brief: ReplyBrief) -> Scaffold:
    """The support of a reply: who is stuck gets a first step, and nobody goes further from an answer that is not right.

    Whoever is secure in a skill and got one answer wrong is asked for that answer, without a step back.
    """
    if brief.situation is Situation.HINT:
        return Scaffold.RECAP
    is_feedback = brief.situation is Situation.FEEDBACK
    if is_feedback and not _is_settled(brief) and brief.scaffold is Scaffold.EXTENSION:
        return Scaffold.STEADY
    return brief.scaffold


def _is_settled(brief: ReplyBrief) -> bool:
    return brief.verdict is AnswerVerdict.CORRECT and brief.situation is Situation.FEEDBACK


def _term_of(body: Sequence[str]) -> str:
    """The longest content word of what is taught that no rule on long words forbids; empty if all are short."""
    words = (word for text in body for word in content_words(text))
    terms = [word for word in words if word.isalpha() and _TERM_LETTERS <= len(word) < LONG_WORD_LETTERS]
    return max(terms, key=len, default="")


def _lay_out(first: str, middle: Sequence[str], last: str, *, rules: FormRules) -> str:
    if rules.numbered_steps:
        steps = [f"{number}. {step}" for number, step in enumerate((*middle, last), start=1)]
        return "\n".join(filter(None, (first, *steps)))
    if rules.max_paragraph_sentences is not None:
        return "\n".join(filter(None, (first, *middle, last)))
    return " ".join(filter(None, (first, *middle, last)))
