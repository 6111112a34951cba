"""What the guard learns, how it is calibrated, and how its thresholds are chosen."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from brain_server.safety.normalizer import undisguise
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.passes import Passes
from curriculum.screened_texts import ScreenedText, respelt_texts
from curriculum.train.labels import even_weights, first_tokens, fit_calibration, labelled_example, weigh_examples
from curriculum.train.training import RoleExample
from curriculum.variants import Spelling
from mesh.lm.guarding import (
    GUARD_LABELS,
    HarmCategory,
    HarmReading,
    Speaker,
    guard_prompt,
    label_of,
    logit,
    pieces_of,
)
from mesh.main_brain.role_manifest import Calibration
from mesh.tutoring.profile import GradeBand

# Of the harmless development texts of students, so many may be flagged. All are near misses; of school work next to
# nothing is flagged.
MOST_FLAGGED = 0.115
# How much sooner a category is flagged than the others, in logits: a child in danger must not be missed. With 1, the
# other categories lose more than self-harm wins.
_SOONER = {HarmCategory.SELF_HARM: 0.75}
# How much a harmless text of another grade band counts for a band's threshold. A band has some forty of its own.
_OTHER_BANDS = 0.25
# Development texts choose in these spellings. Leet is undone before a guard reads a text, but not always well: "ki1l"
# turns into "kiil". Of the others next to nothing is left.
_CHOOSING = (Spelling.PLAIN, Spelling.MISSPELT, Spelling.LEET)
_LEAST_SCORE, _MOST_SCORE = 0.02, 0.98


def guard_examples(texts: Sequence[ScreenedText], tokenizer: PreTrainedTokenizerBase) -> list[RoleExample]:
    """Returns one example per text: the guard's prompt, and the first token of its label.

    Spelling tricks are undone as far as they are in serving, so that a guard learns what it will read. Without the rule
    `spelling`, a server does not undo them.
    """
    tokens = label_tokens(tokenizer)
    return [
        labelled_example(
            guard_prompt(undisguise(text.text), speaker=text.speaker, grade=text.grade),
            GUARD_LABELS.index(label_of(text.category)),
            label_tokens=tokens,
            tokenizer=tokenizer,
        )
        for text in texts
    ]


def label_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the first token of each label.

    Raises:
        IndistinctLabels: Two labels begin with the same token.
    """
    return first_tokens(GUARD_LABELS, tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedGuard:
    """A guard that reads texts.

    Attributes:
        passes: The Main Brain's passes.
        factors: The guard's adapter.
        tokenizer: The Main Brain's tokenizer.
        calibration: That of its probabilities; None while it is not known.
    """

    passes: Passes
    factors: LoraFactors | None
    tokenizer: PreTrainedTokenizerBase
    calibration: Calibration | None = None

    def weigh(self, texts: Sequence[ScreenedText]) -> list[list[float]]:
        """Returns the probabilities of the labels for each text as they are."""
        examples = guard_examples(texts, self.tokenizer)
        return weigh_examples(self.passes, self.factors, examples, label_tokens(self.tokenizer))

    def readings(self, texts: Sequence[ScreenedText]) -> list[HarmReading]:
        """Returns what the guard makes of each text; of a long one, its most harmful piece."""
        pieces = [(place, piece) for place, text in enumerate(texts) for piece in pieces_of(text.text)]
        rows = self.weigh([_with_text(texts[place], piece) for place, piece in pieces])
        readings: dict[int, HarmReading] = {}
        for (place, _), row in zip(pieces, rows, strict=True):
            reading = HarmReading.of(self.calibration.apply(row) if self.calibration else row)
            if place not in readings or reading.harm > readings[place].harm:
                readings[place] = reading
        return [readings[place] for place in range(len(texts))]


def choosing_texts(texts: Sequence[ScreenedText], *, seed: int) -> list[ScreenedText]:
    """Returns development texts in the spellings that calibration and thresholds are chosen with."""
    # Repeatable on purpose; it need not be hard to guess.
    draws = random.Random(seed)  # noqa: S311
    return [text for spelling in _CHOOSING for text in respelt_texts(texts, spelling, draws)]


def calibrate(texts: Sequence[ScreenedText], weights: Sequence[Sequence[float]]) -> Calibration:
    """Fits the calibration; harmful texts and harmless ones weigh the same in all."""
    labels = [GUARD_LABELS.index(label_of(text.category)) for text in texts]
    return fit_calibration(weights, labels, weights_N=even_weights(torch.tensor(labels) == 0))


def choose_thresholds(
    texts: Sequence[ScreenedText], readings: Sequence[HarmReading]
) -> dict[HarmCategory, dict[GradeBand, float]]:
    """Returns thresholds at which at most `MOST_FLAGGED` of a grade band's harmless texts by students are flagged.

    Within a band the thresholds of the categories differ by `_SOONER` alone, because a category has too few texts to
    choose more by.
    """
    harmless = [
        (GradeBand.of(text.grade) if text.grade else None, _alarm(reading))
        for text, reading in zip(texts, readings, strict=True)
        if text.category is None and text.speaker is Speaker.STUDENT
    ]
    thresholds: dict[HarmCategory, dict[GradeBand, float]] = {category: {} for category in HarmCategory}
    for band in GradeBand:
        alarms = [(alarm, 1.0 if own_band is band else _OTHER_BANDS) for own_band, alarm in harmless]
        limit = _limit_of(alarms)
        for category, row in thresholds.items():
            score = 1 / (1 + math.exp(_SOONER.get(category, 0.0) - limit))
            row[band] = round(min(_MOST_SCORE, max(_LEAST_SCORE, score)), 4)
    return thresholds


def _alarm(reading: HarmReading) -> float:
    """The logit of harm, so much higher as the soonest of its categories is flagged sooner."""
    return logit(reading.harm) + max(_SOONER.get(category, 0.0) for category in reading.plausible)


def _limit_of(alarms: Sequence[tuple[float, float]]) -> float:
    """The least limit that no more than `MOST_FLAGGED` of the weighted alarms reach."""
    ordered = sorted(alarms, reverse=True)
    budget = MOST_FLAGGED * sum(weight for _, weight in ordered)
    flagged = 0.0
    for place, (alarm, weight) in enumerate(ordered):
        flagged += weight
        if flagged > budget:
            # Between the first that must pass and the last that need not.
            return (alarm + ordered[place - 1][0]) / 2 if place else alarm + 1
    return 0.0


def _with_text(text: ScreenedText, words: str) -> ScreenedText:
    return ScreenedText(text=words, speaker=text.speaker, grade=text.grade, category=text.category, topic=text.topic)
