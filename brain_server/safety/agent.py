"""The safety agent: replies that are screened before and while they are sent.

The model begins to decode while the guard reads the prompt, in the same steps of the batch, so that screening hardly
delays it. Nothing is sent before the prompt is cleared, and no sentence before it is cleared itself. Knows neither gRPC
nor torch.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from brain_server.engine.contract import Delta, Engine, Fallback, FinishReason, Generation, Reply, Timing
from brain_server.safety.conversation import ScreenedConversation, screen_conversation
from brain_server.safety.event_pump import EventPump
from brain_server.safety.guard import GuardReader
from brain_server.safety.rules import SafetyRules, SpokenText
from brain_server.safety.screening import Screener, calls_for_alert
from brain_server.safety.sentences import HeldText
from brain_server.safety.settings import SafetyMode, SafetySettings
from brain_server.safety.verdict import SafetyVerdict, TextKind, merge_verdicts
from brain_server.safety.written_replies import WrittenReplies
from mesh.lm.chat import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyFlag:
    """Something that an adult is told of.

    Attributes:
        verdict: What was found.
        student_id: The student; None if the call names none.
        request_id: Id of the call.
        words: The text in which it was found.
    """

    verdict: SafetyVerdict
    student_id: str | None
    request_id: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenedReply:
    """A whole reply, and the verdict on its conversation; None if nothing is screened."""

    reply: Reply
    verdict: SafetyVerdict | None


class SafetyAgent:
    """Screens conversations.

    Attributes:
        screener: Judges.
        replies: What is sent in place of something harmful.
        mode: Whether to block, to watch alone, or to do nothing.
    """

    def __init__(
        self,
        engine: Engine,
        screener: Screener,
        *,
        replies: WrittenReplies,
        mode: SafetyMode,
        on_flag: Callable[[SafetyFlag], None],
    ) -> None:
        """Takes the engine that decodes, and a function for what adults are told of, which must not wait."""
        self.screener = screener
        self.replies = replies
        self.mode = mode
        self._engine = engine
        self._on_flag = on_flag

    @classmethod
    def of(
        cls,
        engine: Engine,
        settings: SafetySettings,
        *,
        on_flag: Callable[[SafetyFlag], None],
        observe: Callable[[SafetyVerdict], None],
    ) -> "SafetyAgent":
        """Returns an agent for these settings; `observe` is called with every verdict."""
        guard = GuardReader(
            engine, thresholds=settings.safety_thresholds, timeout_seconds=settings.safety_timeout_seconds
        )
        screener = Screener(
            guard,
            rules=SafetyRules(settings.safety_rules),
            is_guard_required=settings.safety_required,
            observe=observe,
        )
        replies = WrittenReplies(help_line=settings.safety_help_line)
        return cls(engine, screener, replies=replies, mode=settings.safety, on_flag=on_flag)

    async def stream(self, generation: Generation, *, request_id: str) -> AsyncGenerator[Delta | ScreenedReply, None]:
        """Yields zero or more deltas, then the reply. Raises as `Engine.stream` and `Screener.screen` do.

        Args:
            generation: The conversation to continue.
            request_id: Id of the call, for adults.
        """
        screened = self._unscreened(generation) if self.mode == "off" else self._screened(generation, request_id)
        async with aclosing(screened) as events:
            async for event in events:
                yield event

    def blocks(self, verdict: SafetyVerdict) -> bool:
        """Returns whether a text must not pass."""
        return self.mode == "enforce" and verdict.is_blocked

    def flag(self, verdict: SafetyVerdict, words: str, *, student_id: str | None, request_id: str) -> None:
        """Has adults told of a text, if its verdict calls for that."""
        if calls_for_alert(verdict):
            self._on_flag(SafetyFlag(verdict=verdict, student_id=student_id, request_id=request_id, words=words))

    def written_reply(self, text: str, started_at: float) -> Reply:
        """Returns a reply that people wrote, at least its end; `started_at` is in `time.monotonic()` seconds."""
        facts = self._engine.facts
        milliseconds = (time.monotonic() - started_at) * 1e3
        return Reply(
            text=text,
            model=facts.model,
            main_brain=facts.main_brain.digest if facts.main_brain else "",
            adapter=None,
            fallback=Fallback.SAFETY,
            finish_reason=FinishReason.SAFETY,
            prompt_tokens=0,
            completion_tokens=0,
            timing=Timing(queue_ms=0, adapter_load_ms=0, first_token_ms=milliseconds, total_ms=milliseconds),
        )

    async def _unscreened(self, generation: Generation) -> AsyncGenerator[Delta | ScreenedReply, None]:
        async with aclosing(self._engine.stream(generation)) as events:
            async for event in events:
                yield event if isinstance(event, Delta) else ScreenedReply(reply=event, verdict=None)

    async def _screened(self, generation: Generation, request_id: str) -> AsyncGenerator[Delta | ScreenedReply, None]:
        started_at = time.monotonic()
        pump = EventPump(self._engine.stream(generation))
        try:
            conversation = await self._screen_conversation(generation, request_id)
            if self.blocks(conversation.prompt_verdict):
                text = self.replies.pick(conversation.prompt_verdict, grade=generation.prompt.profile.grade)
                yield Delta(text)
                yield ScreenedReply(reply=self.written_reply(text, started_at), verdict=conversation.verdict)
                return
            if self.mode == "enforce" and conversation.turns != generation.prompt.turns:
                await pump.aclose()
                generation = replace(generation, prompt=replace(generation.prompt, turns=conversation.turns))
                pump = EventPump(self._engine.stream(generation))
            reply_screening = _ReplyScreening(self, generation, request_id=request_id, started_at=started_at)
            async with aclosing(reply_screening.run(pump, conversation.verdict)) as events:
                async for event in events:
                    yield event
        finally:
            await pump.aclose()

    async def _screen_conversation(self, generation: Generation, request_id: str) -> ScreenedConversation:
        conversation = await screen_conversation(
            self.screener, generation.prompt, replies=self.replies, deadline=generation.deadline
        )
        words = generation.prompt.turns[-1].text
        self.flag(conversation.prompt_verdict, words, student_id=generation.student_id, request_id=request_id)
        return conversation


class _ReplyScreening:
    """Lets one reply through, sentence by sentence."""

    def __init__(self, agent: SafetyAgent, generation: Generation, *, request_id: str, started_at: float) -> None:
        self._agent = agent
        self._generation = generation
        self._request_id = request_id
        self._started_at = started_at
        self._text = HeldText()
        self._verdicts: list[SafetyVerdict] = []
        student_turns = [turn.text for turn in generation.prompt.turns if turn.role is Role.STUDENT]
        self._answers = "\n".join(student_turns)

    async def run(
        self, pump: EventPump[Delta | Reply], verdict: SafetyVerdict
    ) -> AsyncGenerator[Delta | ScreenedReply, None]:
        """Yields what is cleared of a stream, then the reply, or what people wrote in place of its rest.

        Args:
            pump: The stream of the engine.
            verdict: That on the conversation so far.
        """
        self._verdicts.append(verdict)
        holds = self._agent.mode == "enforce"
        async with aclosing(pump.batches()) as batches:
            async for events in batches:
                reply = next((event for event in events if isinstance(event, Reply)), None)
                for event in events:
                    if isinstance(event, Delta):
                        self._text.add(event.text)
                        if not holds:
                            yield event
                while text := self._text.next_text(is_whole=reply is not None):
                    if not await self._clear(text):
                        text = self._replacement()
                        yield Delta(text)
                        written = self._agent.written_reply(self._text.passed + text, self._started_at)
                        yield ScreenedReply(reply=written, verdict=merge_verdicts(self._verdicts))
                        return
                    self._text.let_through(text)
                    if holds:
                        yield Delta(text)
                if reply is not None:
                    yield ScreenedReply(reply=reply, verdict=merge_verdicts(self._verdicts))

    async def _clear(self, text: str) -> bool:
        """Screens the next text of the reply; returns whether it may pass."""
        generation = self._generation
        words = self._text.in_context(text)
        if not words:
            return True
        verdict = await self._agent.screener.screen(
            SpokenText(text=words, by_student=False, answers=self._answers),
            TextKind.REPLY,
            grade=generation.prompt.profile.grade,
            deadline=generation.deadline,
        )
        self._verdicts.append(verdict)
        self._agent.flag(verdict, words, student_id=generation.student_id, request_id=self._request_id)
        return not self._agent.blocks(verdict)

    def _replacement(self) -> str:
        text = self._agent.replies.pick(self._verdicts[-1], grade=self._generation.prompt.profile.grade)
        return f"\n\n{text}" if self._text.passed.strip() else text
