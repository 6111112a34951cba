"""The frame of a tutor's reply: what stands around the sentences that are taught, by situation, manner and profile.

A small model must not make up whether an answer was right, or what to do next: the frame says both, from what the
prompt tells and from the student's teaching policy. The sentences between are distilled. Knows nothing of models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cloning_server.examples import phrases
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.manner import Manner
from cloning_server.examples.phrases import picked
from cloning_server.examples.situations import Situation
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import FormRules
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, Scaffold, WritingLevel
from mesh.tutoring.profile import Disability
from mesh.tutoring.teaching import rules_of

# The forms to say it in where those for a student's own writing break a rule.
_SHORTER: Final[Mapping[WritingLevel, WritingLevel]] = {
    WritingLevel.ABOVE: WritingLevel.AT,
    WritingLevel.AT: WritingLevel.BELOW,
    WritingLevel.BELOW: WritingLevel.BELOW,
    WritingLevel.UNKNOWN: WritingLevel.BELOW,
}


def frame_reply(brief: ReplyBrief, body: Sequence[str], *, has_opener: bool = False) -> str:
    """Returns the whole reply around the sentences of its body, laid out as the student's form rules ask.

    Where a reply with all that the teaching policy asks for would break a rule, it says less: a small child's reply is
    short, and an interest of many words fits no short sentence.

    Args:
        brief: What the reply depends on.
        body: What is taught.
        has_opener: Whether the first sentence of the body opens the reply.
    """
    rules = rules_of(brief.profile)
    opener, middle = (body[0], body[1:]) if has_opener and body else (_opener(brief), body)
    reply = ""
    for policy in _policies(brief):
        reply = _compose(brief, opener, middle, policy)
        if not rules.violations(reply):
            break
    return reply


def _opener(brief: ReplyBrief) -> str:
    if brief.situation is Situation.FEEDBACK and brief.verdict is not None:
        return picked(phrases.VERDICT_OPENERS[brief.verdict], brief.draw)
    return picked(phrases.OPENERS[brief.situation], brief.draw)


def _policies(brief: ReplyBrief) -> Iterator[tuple[str, ...]]:
    """The sentences that the teaching policy asks for: all of them first, then fewer, from long forms to short ones."""
    manner = brief.manner
    without_interest = replace(manner, interest="")
    without_offer = replace(without_interest, guidance=GuidanceLevel.UNKNOWN)
    for fewer in (manner, without_interest, without_offer, replace(without_offer, mistake=MistakeKind.UNKNOWN)):
        for writing in dict.fromkeys((manner.writing, _SHORTER[manner.writing], WritingLevel.BELOW)):
            yield tuple(_policy(brief, replace(fewer, writing=writing)))


def _policy(brief: ReplyBrief, manner: Manner) -> Iterator[str]:
    """The habit, the interest where the closing question is too short for it, an offer of help, the question."""
    draw = brief.draw
    if manner.mistake in phrases.HABITS:
        yield phrases.habit_against(manner)
    if manner.interest and manner.writing is WritingLevel.BELOW:
        yield picked(phrases.SHORT_INTERESTS, draw).format(interest=manner.interest)
    if manner.guidance is GuidanceLevel.MUCH:
        yield picked(phrases.HELP, draw)
    yield phrases.closing_question(_support(brief), brief.profile.learning_style, manner, draw=draw)


def _compose(brief: ReplyBrief, opener: str, body: Sequence[str], policy: Sequence[str]) -> str:
    """Puts the body between opener and what the policy asks for, whose last sentence is the question."""
    rules = rules_of(brief.profile)
    *advice, question = policy
    # With nothing taught and nothing advised, there is the question to go back to.
    middle = [*body, *advice] or [picked(phrases.GO_BACK, brief.draw)]
    ends = (picked(phrases.END_MARKERS, brief.draw),) if brief.profile.disability is Disability.AUTISM else ()
    last = " ".join((question, *ends))
    calm = _calm(brief, rules, " ".join((opener, *middle, last)))
    return lay_out(" ".join(filter(None, (opener, calm))), middle, last, rules=rules)


def _calm(brief: ReplyBrief, rules: FormRules, text: str) -> str:
    """A sentence that reassures, where the profile asks for one and the reply has none."""
    if not FormRules(required_phrases=rules.required_phrases).violations(text):
        return ""
    return picked(phrases.CALM, brief.draw)


def _support(brief: ReplyBrief) -> Scaffold:
    """The support of a reply: who is stuck gets a first step, and nobody goes further from an answer that is not right.

    Whoever is secure in a skill and got one answer wrong is asked for that answer, without a step back.
    """
    if brief.situation is Situation.HINT:
        return Scaffold.RECAP
    is_unsettled = brief.situation is Situation.FEEDBACK and brief.verdict is not AnswerVerdict.CORRECT
    if is_unsettled and brief.scaffold is Scaffold.EXTENSION:
        return Scaffold.STEADY
    return brief.scaffold


def lay_out(first: str, middle: Sequence[str], last: str, *, rules: FormRules) -> str:
    """Returns sentences as the form rules ask: in numbered steps behind the first, in lines, or in one paragraph."""
    if rules.numbered_steps:
        steps = [f"{number}. {step}" for number, step in enumerate((*middle, last), start=1)]
        return "\n".join(filter(None, (first, *steps)))
    if rules.max_paragraph_sentences is not None:
        return "\n".join(filter(None, (first, *middle, last)))
    return " ".join(filter(None, (first, *middle, last)))
