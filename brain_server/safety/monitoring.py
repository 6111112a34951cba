"""Screens conversations beside their replies, which wait for nothing (`SAFETY=monitor`).

Screening goes on where a call ends before its verdict, so that adults are told whatever becomes of the call. Knows
neither gRPC nor torch.
"""

import asyncio
from collections.abc import Coroutine

from brain_server.safety.conversation import ScreenedConversation
from brain_server.safety.reply_screening import ReplyScreening
from brain_server.safety.verdict import SafetyVerdict, merge_verdicts
from mesh.errors import SafetyUnavailable
from mesh.log import get_logger

# How long a brain that shuts down still waits for verdicts.
_LAST_SECONDS = 5.0

_log = get_logger(__name__)


class MonitoredReply:
    """Screens one conversation in the background while its reply is sent.

    Guard and rules begin to read once the reply has its first text or has ended, so that they delay no first token; at
    once if somebody waits for `conversation_screened`.

    Args:
        conversation: Screens the prompt and the earlier turns.
        screening: Screens the reply.
    """

    def __init__(self, conversation: Coroutine[None, None, ScreenedConversation], screening: ReplyScreening) -> None:
        self._screening = screening
        self._has_news = asyncio.Event()
        self._may_read = asyncio.Event()
        self._is_whole = False
        self._conversation = asyncio.create_task(self._screen(conversation), name="screen a conversation")
        self.task = asyncio.create_task(self._run(), name="screen beside a reply")

    async def conversation_screened(self) -> None:
        """Returns once the prompt and the earlier turns have their verdict. Raises as `Screener.screen` does."""
        self._may_read.set()
        await asyncio.shield(self._conversation)

    def add(self, text: str) -> None:
        """Takes the next text of the reply."""
        self._screening.held_text.add(text)
        self._may_read.set()
        self._has_news.set()

    def end(self) -> None:
        """Says that no more text comes. What came is screened all the same."""
        self._is_whole = True
        self._may_read.set()
        self._has_news.set()

    async def verdict(self) -> SafetyVerdict:
        """Returns the verdict on conversation and reply, once the reply has ended. Raises as `Screener.screen` does."""
        return await asyncio.shield(self.task)

    async def _run(self) -> SafetyVerdict:
        # Both end, also if one fails.
        conversation, failure = await asyncio.gather(self._conversation, self._screen_reply(), return_exceptions=True)
        for outcome in (conversation, failure):
            if isinstance(outcome, BaseException):
                raise outcome
        assert isinstance(conversation, ScreenedConversation)
        return merge_verdicts([conversation.verdict, *self._screening.verdicts])

    async def _screen(self, conversation: Coroutine[None, None, ScreenedConversation]) -> ScreenedConversation:
        try:
            await self._may_read.wait()
            return await conversation
        finally:
            conversation.close()

    async def _screen_reply(self) -> None:
        """Screens what comes until the reply ends; a text that can't be judged is an error only then."""
        held_text = self._screening.held_text
        failure: SafetyUnavailable | None = None
        while True:
            is_whole = self._is_whole
            while text := held_text.next_text(is_whole=is_whole):
                try:
                    await self._screening.screen(text)
                except SafetyUnavailable as error:
                    failure = error
                held_text.let_through(text)
            if is_whole and failure is not None:
                raise failure
            if is_whole:
                return
            await self._has_news.wait()
            self._has_news.clear()


class Monitor:
    """Keeps what is screened in the background until it has its verdict."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[SafetyVerdict]] = set()

    def watch(
        self, conversation: Coroutine[None, None, ScreenedConversation], screening: ReplyScreening
    ) -> MonitoredReply:
        """Begins to screen a conversation and its reply; see `MonitoredReply`."""
        reply = MonitoredReply(conversation, screening)
        self._tasks.add(reply.task)
        reply.task.add_done_callback(self._forget)
        return reply

    async def finish(self) -> None:
        """Returns once all verdicts are there; gives up after some seconds, and logs that."""
        if not self._tasks:
            return
        _, unfinished = await asyncio.wait(self._tasks, timeout=_LAST_SECONDS)
        for task in unfinished:
            task.cancel()
        if unfinished:
            _log.error("screening_cut_off", count=len(unfinished))
            await asyncio.wait(unfinished)

    def _forget(self, task: asyncio.Task[SafetyVerdict]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # A call that still waits learns of it too; one that has ended can't.
        if isinstance(error, SafetyUnavailable):
            _log.warning("not_screened", reason=error.reason)
        else:
            _log.error("screening_failed", exc_info=error)
