"""Asks the guard about a text: one short prefill per piece, in the engine's running batch."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from brain_server.engine.contract import Engine
from brain_server.engine.main_brain import MainBrainFacts
from brain_server.safety.rules import SpokenText
from mesh.errors import AivoError, DeadlineExceeded
from mesh.lm.guarding import GUARD_LABELS, HarmCategory, HarmReading, Speaker, guard_prompt, ordered_weights, pieces_of
from mesh.log import get_logger

# Readings that are kept, some hundred bytes each: a conversation sends its earlier turns with every prompt.
_MAX_CACHED_READINGS = 4096

_log = get_logger(__name__)


class GuardUnavailable(Exception):
    """The guard is not there, or does not answer in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardJudgement:
    """What the guard makes of a text.

    Attributes:
        guard: `lora:` and the sha256 of its weights.
        harm: How likely the text is harmful, whatever it is about; of a long one, the most harmful piece.
        probabilities: The probability of each category, the highest of all pieces.
        flagged: The categories that the text is flagged for, likeliest first.
    """

    guard: str
    harm: float
    probabilities: Mapping[HarmCategory, float]
    flagged: tuple[HarmCategory, ...]


class GuardReader:
    """Has the guard read texts.

    Args:
        engine: Runs the guard.
        thresholds: By category, in place of those in the guard's manifest.
        timeout_seconds: What a text may take, however long it is.
    """

    def __init__(self, engine: Engine, *, thresholds: Mapping[HarmCategory, float], timeout_seconds: float) -> None:
        self._engine = engine
        self._thresholds = dict(thresholds)
        self._timeout_seconds = timeout_seconds
        self._readings: OrderedDict[bytes, HarmReading] = OrderedDict()

    async def read(self, spoken: SpokenText, *, grade: str | None, deadline: float | None) -> GuardJudgement:
        """Returns what the guard makes of a text.

        Args:
            spoken: The text, as the guard should read it.
            grade: The student's; None if unknown.
            deadline: When the caller stops waiting, in `time.monotonic()` seconds; None for never.

        Raises:
            GuardUnavailable: There is no guard, it fails, or it takes too long.
            DeadlineExceeded: The caller's deadline passed.
        """
        main_brain = self._engine.facts.main_brain
        if main_brain is None or "guard" not in main_brain.roles:
            raise GuardUnavailable
        manifest = main_brain.roles["guard"]
        pieces = pieces_of(spoken.text)
        speaker = Speaker.STUDENT if spoken.by_student else Speaker.TUTOR
        limit = min(time.monotonic() + self._timeout_seconds, deadline or float("inf"))
        try:
            async with asyncio.timeout(max(limit - time.monotonic(), 0)):
                readings = await asyncio.gather(
                    *(self._read_piece(piece, speaker, main_brain, grade=grade, deadline=limit) for piece in pieces)
                )
        except (AivoError, TimeoutError) as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded from None
            _log.warning("guard_failed", error=type(error).__name__)
            raise GuardUnavailable from error
        thresholds = {**manifest.thresholds_for(grade), **self._thresholds}
        probabilities = {category: max(reading.harms[category] for reading in readings) for category in HarmCategory}
        flagged = {category for reading in readings for category in reading.flagged(thresholds, speaker=speaker)}
        return GuardJudgement(
            guard=main_brain.guard,
            harm=max(reading.harm for reading in readings),
            probabilities=probabilities,
            flagged=tuple(sorted(flagged, key=probabilities.__getitem__, reverse=True)),
        )

    async def _read_piece(
        self, piece: str, speaker: Speaker, main_brain: MainBrainFacts, *, grade: str | None, deadline: float
    ) -> HarmReading:
        # A digest: the cache holds no words of students.
        key = sha256("\n".join((main_brain.guard, speaker, grade or "", piece)).encode()).digest()
        reading = self._readings.get(key)
        if reading is None:
            prompt = guard_prompt(piece, speaker=speaker, grade=grade)
            weights = ordered_weights(await self._engine.weigh(prompt, GUARD_LABELS, role="guard", deadline=deadline))
            calibration = main_brain.roles["guard"].calibration
            reading = HarmReading.of(calibration.apply(weights) if calibration else weights)
            self._readings[key] = reading
            if len(self._readings) > _MAX_CACHED_READINGS:
                self._readings.popitem(last=False)
        self._readings.move_to_end(key)
        return reading
