"""The safety agent: replies that are screened before and while they are sent.

The model begins to decode while the guard reads the prompt, in the same steps of the batch, so that screening hardly
delays it. Nothing is sent before the prompt is cleared, and no sentence before it is cleared itself. Where nothing is
blocked, nothing waits. Knows neither gRPC nor torch.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from brain_server.engine.contract import Delta, Engine, Fallback, FinishReason, Generation, Reply, Timing
from brain_server.safety.conversation import ScreenedConversation, screen_conversation
from brain_server.safety.event_pump import EventPump
from brain_server.safety.guard import GuardReader
from brain_server.safety.monitoring import Monitor
from brain_server.safety.reply_screening import ReplyScreening
from brain_server.safety.rules import SafetyRules
from brain_server.safety.screening import Screener, calls_for_alert
from brain_server.safety.settings import SafetyMode, SafetySettings
from brain_server.safety.verdict import SafetyVerdict, merge_verdicts
from brain_server.safety.written_replies import WrittenReplies


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
        self._monitor = Monitor()

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
        match self.mode:
            case "enforce":
                replies = self._screened(generation, request_id)
            case "monitor":
                replies = self._monitored(generation, request_id)
            case "off":
                replies = self._unscreened(generation)
        async with aclosing(replies) as events:
            async for event in events:
                yield event

    async def finish(self) -> None:
        """Returns once all that is screened beside replies has its verdict, or after some seconds."""
        await self._monitor.finish()

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

    async def _monitored(self, generation: Generation, request_id: str) -> AsyncGenerator[Delta | ScreenedReply, None]:
        pump = EventPump(self._engine.stream(generation))
        # Not within the caller's deadline: adults should be told also of what the caller did not wait for.
        screening = self._reply_screening(generation, request_id, deadline=None)
        monitored = self._monitor.watch(self._screen_conversation(generation, request_id, deadline=None), screening)
        try:
            if self.screener.is_guard_required:
                await monitored.conversation_screened()
            async with aclosing(pump.batches()) as batches:
                async for events in batches:
                    for event in events:
                        if isinstance(event, Delta):
                            monitored.add(event.text)
                            yield event
                        else:
                            monitored.end()
                            yield ScreenedReply(reply=event, verdict=await monitored.verdict())
        finally:
            monitored.end()
            await pump.aclose()

    async def _screened(self, generation: Generation, request_id: str) -> AsyncGenerator[Delta | ScreenedReply, None]:
        started_at = time.monotonic()
        pump = EventPump(self._engine.stream(generation))
        try:
            conversation = await self._screen_conversation(generation, request_id, deadline=generation.deadline)
            if conversation.prompt_verdict.is_blocked:
                text = self.replies.pick(conversation.prompt_verdict, grade=generation.prompt.profile.grade)
                yield Delta(text)
                yield ScreenedReply(reply=self.written_reply(text, started_at), verdict=conversation.verdict)
                return
            if conversation.turns != generation.prompt.turns:
                await pump.aclose()
                generation = replace(generation, prompt=replace(generation.prompt, turns=conversation.turns))
                pump = EventPump(self._engine.stream(generation))
            screening = self._reply_screening(generation, request_id, deadline=generation.deadline)
            screening.verdicts.append(conversation.verdict)
            async with aclosing(self._let_through(pump, screening, generation, started_at)) as events:
                async for event in events:
                    yield event
        finally:
            await pump.aclose()

    async def _let_through(
        self, pump: EventPump[Delta | Reply], screening: ReplyScreening, generation: Generation, started_at: float
    ) -> AsyncGenerator[Delta | ScreenedReply, None]:
        """Yields what is cleared of a stream, then the reply, or what people wrote in place of its rest."""
        held_text = screening.held_text
        async with aclosing(pump.batches()) as batches:
            async for events in batches:
                reply = next((event for event in events if isinstance(event, Reply)), None)
                for event in events:
                    if isinstance(event, Delta):
                        held_text.add(event.text)
                while text := held_text.next_text(is_whole=reply is not None):
                    verdict = await screening.screen(text)
                    if verdict is not None and verdict.is_blocked:
                        written = self.replies.pick(verdict, grade=generation.prompt.profile.grade)
                        text = f"\n\n{written}" if held_text.passed.strip() else written
                        yield Delta(text)
                        yield ScreenedReply(
                            reply=self.written_reply(held_text.passed + text, started_at),
                            verdict=merge_verdicts(screening.verdicts),
                        )
                        return
                    held_text.let_through(text)
                    yield Delta(text)
                if reply is not None:
                    yield ScreenedReply(reply=reply, verdict=merge_verdicts(screening.verdicts))

    def _reply_screening(self, generation: Generation, request_id: str, *, deadline: float | None) -> ReplyScreening:
        flag = partial(self.flag, student_id=generation.student_id, request_id=request_id)
        return ReplyScreening(self.screener, generation, deadline=deadline, flag=flag)

    async def _screen_conversation(
        self, generation: Generation, request_id: str, *, deadline: float | None
    ) -> ScreenedConversation:
        conversation = await screen_conversation(
            self.screener, generation.prompt, replies=self.replies, deadline=deadline
        )
        words = generation.prompt.turns[-1].text
        self.flag(conversation.prompt_verdict, words, student_id=generation.student_id, request_id=request_id)
        return conversation
