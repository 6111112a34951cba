"""Screens one reply, sentence by sentence.

Knows neither gRPC nor torch.
"""

from collections.abc import Callable

from brain_server.engine.contract import Generation
from brain_server.safety.rules import SpokenText
from brain_server.safety.screening import Screener
from brain_server.safety.sentences import HeldText
from brain_server.safety.verdict import SafetyVerdict, TextKind
from mesh.lm.chat import Role


class ReplyScreening:
    """Screens one reply.

    Attributes:
        held_text: The text of the reply: what was let through, and what is held.
        verdicts: Those on its texts, in order.
    """

    def __init__(
        self,
        screener: Screener,
        generation: Generation,
        *,
        deadline: float | None,
        flag: Callable[[SafetyVerdict, str], None],
    ) -> None:
        """Takes the conversation that the reply continues.

        Args:
            screener: Judges.
            generation: The conversation.
            deadline: When a verdict is of no more use, in `time.monotonic()` seconds; None for never.
            flag: Is called with every verdict and the words that it is about.
        """
        self.held_text = HeldText()
        self.verdicts: list[SafetyVerdict] = []
        self._screener = screener
        self._deadline = deadline
        self._flag = flag
        self._grade = generation.prompt.profile.grade
        self._answers = "\n".join(turn.text for turn in generation.prompt.turns if turn.role is Role.STUDENT)

    async def screen(self, text: str) -> SafetyVerdict | None:
        """Screens the next held text after what was let through; returns None for a blank one.

        Raises as `Screener.screen` does.
        """
        words = self.held_text.in_context(text)
        if not words:
            return None
        verdict = await self._screener.screen(
            SpokenText(text=words, by_student=False, answers=self._answers),
            TextKind.REPLY,
            grade=self._grade,
            deadline=self._deadline,
        )
        self.verdicts.append(verdict)
        self._flag(verdict, words)
        return verdict
