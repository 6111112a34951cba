"""Screens what a reply would be made from: the prompt and the earlier turns."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from brain_server.safety.rules import SpokenText
from brain_server.safety.screening import Screener
from brain_server.safety.verdict import SafetyAction, SafetyVerdict, TextKind, merge_verdicts
from brain_server.safety.written_replies import WrittenReplies
from mesh.lm.chat import Prompt, Role, Turn

# Earlier turns that are read at the same time: a long history should not fill the batch.
_TURNS_AT_ONCE = 4
# What is read of the student's turn before the prompt, so that a request in two parts is seen as one.
_BEFORE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenedConversation:
    """A conversation as the model may read it.

    Attributes:
        verdict: The verdict on prompt and history together; an earlier turn calls for no more than care.
        prompt_verdict: That on the student's latest turn alone.
        turns: The turns without the harmful ones.
    """

    verdict: SafetyVerdict
    prompt_verdict: SafetyVerdict
    turns: tuple[Turn, ...]


async def screen_conversation(
    screener: Screener, prompt: Prompt, *, replies: WrittenReplies, deadline: float | None
) -> ScreenedConversation:
    """Screens the prompt and each earlier turn. Raises as `Screener.screen` does.

    An earlier turn that is harmful is left out with its counterpart, so that nobody can put words into a tutor's mouth.
    Turns that called for support stay: the tutor should know of them. So does what people wrote, unscreened.
    """
    *earlier, latest = prompt.turns
    grade = prompt.profile.grade
    spoken = SpokenText(text=latest.text, by_student=True)
    prompt_verdict, turn_verdicts = await asyncio.gather(
        screener.screen(spoken, TextKind.PROMPT, grade=grade, deadline=deadline),
        _screen_turns(screener, earlier, replies=replies, grade=grade, deadline=deadline),
    )
    kept_turns, harmless_students = _without_harm(earlier, turn_verdicts)
    if harmless_students and not prompt_verdict.is_harmful:
        joined = f"{harmless_students[-1][-_BEFORE_CHARACTERS:]}\n{latest.text}"
        in_context = await screener.screen(
            SpokenText(text=joined, by_student=True), TextKind.PROMPT, grade=grade, deadline=deadline
        )
        prompt_verdict = in_context if in_context.is_blocked else prompt_verdict
    verdicts = [prompt_verdict, *map(_with_care, turn_verdicts)]
    return ScreenedConversation(
        verdict=merge_verdicts(verdicts), prompt_verdict=prompt_verdict, turns=(*kept_turns, latest)
    )


async def _screen_turns(
    screener: Screener, turns: Sequence[Turn], *, replies: WrittenReplies, grade: str | None, deadline: float | None
) -> list[SafetyVerdict]:
    free_places = asyncio.Semaphore(_TURNS_AT_ONCE)

    async def screen(turn: Turn) -> SafetyVerdict:
        by_student = turn.role is Role.STUDENT
        if not by_student and replies.wrote(turn.text):
            return SafetyVerdict(text=TextKind.HISTORY, guard="")
        async with free_places:
            spoken = SpokenText(text=turn.text, by_student=by_student)
            return await screener.screen(spoken, TextKind.HISTORY, grade=grade, deadline=deadline)

    return await asyncio.gather(*map(screen, turns))


def _without_harm(turns: Sequence[Turn], verdicts: Sequence[SafetyVerdict]) -> tuple[list[Turn], list[str]]:
    """Returns the turns of the harmless pairs, and what the student says in those without a finding."""
    kept_turns: list[Turn] = []
    harmless_students: list[str] = []
    for place in range(0, len(turns), 2):
        student_verdict, tutor_verdict = verdicts[place], verdicts[place + 1]
        if tutor_verdict.is_blocked or student_verdict.action is SafetyAction.REFUSE:
            continue
        kept_turns += turns[place : place + 2]
        if not student_verdict.is_blocked:
            harmless_students.append(turns[place].text)
    return kept_turns, harmless_students


def _with_care(verdict: SafetyVerdict) -> SafetyVerdict:
    findings = [replace(finding, action=min(finding.action, SafetyAction.CAREFUL)) for finding in verdict.findings]
    return replace(verdict, findings=tuple(findings))
