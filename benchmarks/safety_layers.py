"""The parts of the safety agent, each as something that reads a text and lets it pass or not.

Every layer is the product's own agent with other settings: a student's text is the prompt of a conversation, a tutor's
text is a reply that streams word by word and is held and read in sentences. Only what the model says is scripted.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from brain_server.engine.contract import Delta, Engine, FinishReason, Generation, Reply
from brain_server.engine.main_brain import RULES
from brain_server.safety.agent import SafetyAgent, ScreenedReply
from brain_server.safety.guard import GuardReader
from brain_server.safety.rules import ALL_RULES, RuleName, SafetyRules, SpokenText
from brain_server.safety.screening import Screener
from brain_server.safety.settings import SafetySettings
from brain_server.safety.verdict import SafetyVerdict, TextKind
from brain_server.safety.written_replies import WrittenReplies
from curriculum.screened_texts import ScreenedText
from mesh.lm.chat import Prompt, Role, Turn
from mesh.lm.guarding import Speaker
from mesh.tutoring.profile import StudentProfile
from testing.scripted.engine import ScriptedEngine

# What a tutor's text answers.
_QUESTION = "What do plants need to grow?"
# What is caught must not depend on how busy the machine is.
_TIMEOUT_SECONDS = 3600.0


class GuardSilent(Exception):
    """The guard of a layer did not read a text, so that the rules alone would have been measured."""


class UnknownLayer(Exception):
    """A layer that is not there was asked for; the message names it and those that are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a layer makes of a text.

    Attributes:
        harm: How likely harm is, 0 to 1, for ordering; None from a layer that knows no probabilities.
        is_blocked: Whether the text is blocked.
        has_finding: Whether the text passes although something was found in it, such as an address.
        seconds: How long it took.
    """

    harm: float | None
    is_blocked: bool
    has_finding: bool
    seconds: float


class Layer(Protocol):
    """A part of the safety agent, or all of it."""

    async def find(self, text: ScreenedText) -> Finding:
        """Returns what the layer makes of a text."""
        ...


class AgentLayer:
    """The product's agent with the guard and the rules that a layer has.

    Args:
        engine: Runs the guard; None for a layer without a guard.
        settings: The agent's settings. A layer always blocks, and always waits for its guard.
    """

    def __init__(self, engine: Engine | None, settings: SafetySettings) -> None:
        self._has_guard = engine is not None
        # A scripted engine says that it has no guard.
        self._guard = GuardReader(
            engine or ScriptedEngine(), thresholds=settings.safety_thresholds, timeout_seconds=_TIMEOUT_SECONDS
        )
        self._rules = SafetyRules(settings.safety_rules)
        self._replies = WrittenReplies(help_line=settings.safety_help_line)

    async def find(self, text: ScreenedText) -> Finding:
        """See `Layer.find`. Raises `GuardSilent` if there is a guard and it fails."""
        started_at = time.monotonic()
        screened = await self._reply(text)
        seconds = time.monotonic() - started_at
        verdict = screened.verdict
        assert verdict is not None, "an agent that blocks gives a verdict"
        if self._has_guard and verdict.guard == RULES:
            raise GuardSilent
        is_blocked = screened.reply.finish_reason is FinishReason.SAFETY
        return Finding(
            harm=verdict.harm if self._has_guard else None,
            is_blocked=is_blocked,
            has_finding=bool(verdict.findings) and not is_blocked,
            seconds=seconds,
        )

    async def _reply(self, text: ScreenedText) -> ScreenedReply:
        by_student = text.speaker is Speaker.STUDENT
        screener = _WatchedScreener(self._guard, rules=self._rules, is_guard_required=False)
        model = _Speaker(() if by_student else tuple(_words(text.text)), screener)
        agent = SafetyAgent(model, screener, replies=self._replies, mode="enforce", on_flag=_ignore)
        turn = Turn(role=Role.STUDENT, text=text.text if by_student else _QUESTION)
        generation = Generation(prompt=Prompt(profile=StudentProfile(grade=text.grade), turns=(turn,)))
        async with aclosing(agent.stream(generation, request_id="")) as events:
            async for event in events:
                if isinstance(event, ScreenedReply):
                    return event
        raise AssertionError("the agent ended a stream without a reply")


class _WatchedScreener(Screener):
    """Says whether it is at work."""

    def __init__(self, guard: GuardReader, *, rules: SafetyRules, is_guard_required: bool) -> None:
        super().__init__(guard, rules=rules, is_guard_required=is_guard_required)
        self.idle = asyncio.Event()
        self.idle.set()

    async def screen(
        self, spoken: SpokenText, kind: TextKind, *, grade: str | None, deadline: float | None = None
    ) -> SafetyVerdict:
        self.idle.clear()
        try:
            return await super().screen(spoken, kind, grade=grade, deadline=deadline)
        finally:
            self.idle.set()


class _Speaker(ScriptedEngine):
    """Says a text, each word when what came before is read: a guard is faster than a model that decodes.

    A script that ran ahead would be read in larger pieces, and in others each time.
    """

    def __init__(self, words: Sequence[str], screener: _WatchedScreener) -> None:
        super().__init__()
        self.pieces = tuple(words)
        self._screener = screener

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        async with aclosing(super().stream(generation)) as events:
            async for event in events:
                # The agent takes the last word meanwhile, and begins to read if a sentence is complete.
                await asyncio.sleep(0)
                await self._screener.idle.wait()
                yield event


def layers_of(engine: Engine, settings: SafetySettings) -> dict[str, Layer]:
    """Returns the layers by name; those with a guard only if the engine has one.

    `spelling` finds nothing by itself: what it is worth is the difference between the guard with and without it.
    `both` is the agent as the settings have it.
    """

    def layer(rules: tuple[RuleName, ...], *, has_guard: bool) -> Layer:
        return AgentLayer(engine if has_guard else None, settings.model_copy(update={"safety_rules": rules}))

    layers = {f"rule_{name}": layer((name,), has_guard=False) for name in ALL_RULES if name != "spelling"}
    layers["rules"] = layer(ALL_RULES, has_guard=False)
    main_brain = engine.facts.main_brain
    if main_brain is not None and "guard" in main_brain.roles:
        layers["guard"] = layer((), has_guard=True)
        layers["guard_with_spelling"] = layer(("spelling",), has_guard=True)
        layers["both"] = layer(settings.safety_rules, has_guard=True)
    return layers


def chosen_layers(layers: Mapping[str, Layer], names: Sequence[str] | None) -> dict[str, Layer]:
    """Returns the layers of these names; all of them for None.

    Raises:
        UnknownLayer: There is no layer of a name, or it needs a guard and the Main Brain has none.
    """
    if names is None:
        return dict(layers)
    for name in names:
        if name not in layers:
            raise UnknownLayer(
                f"--layers: there is no layer {name} on this Main Brain; choose from {', '.join(layers)}"
            )
    return {name: layer for name, layer in layers.items() if name in names}


def _words(text: str) -> Iterable[str]:
    """Yields a text in words, each with the blank before it, as tokens have it."""
    start = 0
    while start < len(text):
        end = text.find(" ", start + 1)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end


def _ignore(_: object) -> None:
    """Alerts are not measured."""
