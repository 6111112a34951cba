"""A scripted engine, for what a real one does only after an error, or at a moment that a test cannot choose."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from brain_server.engine.contract import (
    AdapterPolicy,
    Delta,
    EngineFacts,
    Fallback,
    FinishReason,
    Generation,
    LoadedAdapter,
    Reply,
    Residency,
    Tier,
    Timing,
    WarmedAdapter,
)
from brain_server.engine.main_brain import MainBrainFacts
from mesh.adapters.ref import AdapterRef
from mesh.lm.chat import Prompt
from mesh.lm.guarding import GUARD_LABELS, HarmCategory, label_of
from mesh.main_brain.roles import RoleManifest, RoleName

PIECES = ("Plants ", "make ", "food.")
SHA256 = "ab" * 32
MAIN_BRAIN = "cd" * 32
FACTS = EngineFacts(
    ready=True,
    loading=False,
    reason="",
    model="scripted",
    device="cpu",
    gpu_available=False,
    quantization="none",
    dtype="float32",
    fallback_for="",
    main_brain=MainBrainFacts(digest=MAIN_BRAIN, tutor="none", grader="zero-shot"),
)
TIMING = Timing(queue_ms=1.0, adapter_load_ms=2.0, first_token_ms=3.0, total_ms=4.0)


class ScriptedEngine:
    """Replies that plants make food, with the student's adapter if a student is named who has one.

    Attributes:
        facts: What health reads.
        error: `stream`, `weigh` and `warm` fail with it; None for no failure.
        error_after: How many pieces `stream` sends before it fails.
        hold: `stream` waits for it before each piece but the first.
        text: The text of a reply under a schema.
        own_texts: What the adapters of these students reply under a schema instead.
        without_adapter: Why these students have no adapter that can answer.
        adapter_error: The adapters of students fail with it; None for no failure.
        finish_reason: Why replies end.
        weights: The probabilities that `weigh` returns, by the end of the last turn; equal ones for any other turn.
        generations: The requests of all `stream` calls, in order.
        weighed: The prompts of all `weigh` calls, in order.
        weighed_by: The roles that they named, in order.
        closed: Is set when a stream ends before its reply.
        pieces: What `stream` sends, unless there is a schema.
        harmful: What the guard finds in a text that contains a phrase, by phrase; any other text is safe.
        guard_hold: The guard waits for it.
        guard_error: The guard fails with it; None for no failure.
        residents: The adapters in memory: student, version, last use.
    """

    def __init__(self) -> None:
        self.facts = FACTS
        self.error: Exception | None = None
        self.error_after = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.text = ""
        self.own_texts: dict[str, str] = {}
        self.without_adapter: dict[str, Fallback] = {}
        self.adapter_error: Exception | None = None
        self.finish_reason = FinishReason.STOP
        self.weights: dict[str, tuple[float, ...]] = {}
        self.generations: list[Generation] = []
        self.weighed: list[Prompt] = []
        self.weighed_by: list[RoleName | None] = []
        self.closed = asyncio.Event()
        self.pieces: tuple[str, ...] = PIECES
        self.harmful: dict[str, HarmCategory] = {}
        self.guard_hold = asyncio.Event()
        self.guard_hold.set()
        self.guard_error: Exception | None = None
        self.residents = [("student123", 2, datetime(2025, 1, 15, 10, 30, tzinfo=UTC))]

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        self.generations.append(generation)
        fallback = self._fallback_for(generation)
        pieces = self._pieces_of(generation, fallback)
        try:
            if self.adapter_error is not None and fallback is None:
                raise self.adapter_error
            for index, piece in enumerate(pieces):
                if self.error is not None and index == self.error_after:
                    raise self.error
                if index:
                    await self.hold.wait()
                yield Delta(piece)
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.set()
            raise
        yield replace(_reply("".join(pieces), generation, fallback), finish_reason=self.finish_reason)

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, role: RoleName | None = None, deadline: float | None = None
    ) -> Mapping[str, float]:
        last_turn = prompt.turns[-1].text
        fitting = (w for end, w in self.weights.items() if last_turn.endswith(end) and len(w) == len(labels))
        weights = next(fitting, None)
        if role == "guard" and weights is None:
            return await self._guard(last_turn)
        if self.error is not None:
            raise self.error
        self.weighed.append(prompt)
        self.weighed_by.append(role)
        return dict(zip(labels, weights or (1 / len(labels),) * len(labels), strict=True))

    async def warm(self, student_id: str, version: int | None = None) -> WarmedAdapter:
        if self.error is not None:
            raise self.error
        return WarmedAdapter(adapter=_adapter(student_id, version or 1), bytes=1_800_000, load_ms=5.0, probe_tokens=4)

    def residencies(self) -> Sequence[Residency]:
        return [
            Residency(
                adapter=_adapter(student_id, version), tier=Tier.SLOT, bytes=1_800_000, leases=1, last_used=last_used
            )
            for student_id, version, last_used in self.residents
        ]

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        return [_adapter(student_id, 1)]

    def has_guard(self, manifest: RoleManifest) -> None:
        """Has a guard from now on."""
        main_brain = MainBrainFacts(
            digest=MAIN_BRAIN, tutor="none", grader="zero-shot", guard=f"lora:{SHA256}", roles={"guard": manifest}
        )
        self.facts = replace(self.facts, main_brain=main_brain)

    def not_ready(self, *, loading: bool, reason: str) -> None:
        """Has no model from now on."""
        self.facts = replace(FACTS, ready=False, loading=loading, reason=reason, dtype="", main_brain=None)

    async def _guard(self, text: str) -> Mapping[str, float]:
        await self.guard_hold.wait()
        if self.guard_error is not None:
            raise self.guard_error
        category = next((category for phrase, category in self.harmful.items() if phrase in text), None)
        return {label: float(label == label_of(category)) for label in GUARD_LABELS}

    def _fallback_for(self, generation: Generation) -> Fallback | None:
        if generation.policy is AdapterPolicy.BASE_ONLY:
            return Fallback.BASE_ONLY
        if generation.student_id is None:
            return Fallback.NO_STUDENT
        return self.without_adapter.get(generation.student_id)

    def _pieces_of(self, generation: Generation, fallback: Fallback | None) -> tuple[str, ...]:
        if not generation.json_schema:
            return self.pieces
        student_id = generation.student_id
        return (self.own_texts.get(student_id, self.text) if student_id and fallback is None else self.text,)


def _adapter(student_id: str, version: int) -> LoadedAdapter:
    return LoadedAdapter(ref=AdapterRef(student_id=student_id, version=version), sha256=SHA256)


def _reply(text: str, generation: Generation, fallback: Fallback | None) -> Reply:
    student_id = generation.student_id if fallback is None else None
    return Reply(
        text=text,
        model="scripted",
        main_brain=MAIN_BRAIN,
        adapter=_adapter(student_id, generation.version or 1) if student_id else None,
        fallback=fallback,
        finish_reason=FinishReason.STOP,
        prompt_tokens=40,
        completion_tokens=3,
        timing=TIMING,
    )
