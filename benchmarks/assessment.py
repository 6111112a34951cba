"""Agreement of verdicts with teachers: area under the ROC curve and accuracy of `correctness` against `is_correct`.

    python -m benchmarks.assessment FOLDER [--items 200] [--seed 7]

The folder holds StartClone requests as `*.json`, with `question`, `reference_answer`, `student_answer` and
`is_correct` in each response. Prints one JSON line per method: the whole method, the method without one of its steps,
and a simple baseline, all on the same answers in the same run.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from brain_server.assess import grading
from brain_server.assess.grading import Probabilities
from brain_server.engine.contract import Engine
from brain_server.settings import BrainSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.grading import LABELS
from mesh.settings import load_settings
from mesh.tutoring.criteria import Criteria
from testing.waiting import until_loaded

# The anchor of an uncalibrated verdict.
_UNIFORM = dict.fromkeys(LABELS, 1 / len(LABELS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An answer with a teacher's judgement."""

    criteria: Criteria
    answer: str
    is_correct: bool


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description="Measures how well verdicts agree with teachers.")
    parser.add_argument("folder", type=Path, help="StartClone requests in JSON, one per file")
    parser.add_argument("--items", type=int, default=200, help="number of answers, half of them right")
    parser.add_argument("--seed", type=int, default=7, help="seed of the sample of answers")
    args = parser.parse_args()
    items = sample(args.folder, count=args.items, seed=args.seed)
    asyncio.run(_measure(items, seed=args.seed))


def sample(folder: Path, *, count: int, seed: int) -> list[Item]:
    """Returns `count` different answers, half of them right and half wrong."""
    items: dict[tuple[str, str], Item] = {}
    for path in sorted(folder.glob("*.json")):
        for response in json.loads(path.read_text()).get("baseline_data", {}).get("responses", []):
            criteria = Criteria(question=response["question"], reference_answer=response["reference_answer"])
            item = Item(criteria=criteria, answer=response["student_answer"], is_correct=response["is_correct"])
            items[criteria.question, item.answer] = item
    chance = random.Random(seed)
    return [
        item
        for is_correct in (True, False)
        for item in chance.sample([item for item in items.values() if item.is_correct is is_correct], count // 2)
    ]


def area_under_curve(scores: Sequence[float], truths: Sequence[bool]) -> float:
    """Returns the probability that a right answer scores above a wrong one; ties count half."""
    rights = [score for score, truth in zip(scores, truths, strict=True) if truth]
    wrongs = [score for score, truth in zip(scores, truths, strict=True) if not truth]
    wins = sum((right > wrong) + 0.5 * (right == wrong) for right in rights for wrong in wrongs)
    return wins / (len(rights) * len(wrongs))


async def _measure(items: Sequence[Item], *, seed: int) -> None:
    settings = load_settings(BrainSettings)
    async with AsyncExitStack() as stack:
        blobs = await stack.enter_async_context(
            S3Blobs(bucket=settings.s3_bucket, endpoint_url=settings.s3_endpoint_url)
        )
        engine = await stack.enter_async_context(TorchEngine.open(settings, AdapterStore(blobs)))
        engine_facts = await until_loaded(engine)
        started_at = time.monotonic()
        label_weights = [await _weigh(engine, item) for item in items]
        seconds = time.monotonic() - started_at
    truths = [item.is_correct for item in items]
    for method, scores in _scores_by_method(items, label_weights).items():
        right = sum((score >= 50) is truth for score, truth in zip(scores, truths, strict=True))
        line = {
            "benchmark": "assessment",
            "method": method,
            "auc": round(area_under_curve(scores, truths), 3),
            "accuracy_at_50": round(right / len(items), 3),
            "items": len(items),
            "seed": seed,
            "seconds_per_item": round(seconds / len(items), 2),
            "base_model": engine_facts.model,
            "dtype": engine_facts.dtype,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {engine_facts.device}",
        }
        print(json.dumps(line), flush=True)


async def _weigh(engine: Engine, item: Item) -> list[Mapping[str, float]]:
    """Returns the probability of each label for the answer, then for each anchor."""
    answers = (item.answer, *grading.anchors_of(item.criteria))
    return [await engine.weigh(grading.prompt_for(answer, item.criteria), LABELS) for answer in answers]


def _scores_by_method(
    items: Sequence[Item], label_weights: Sequence[Sequence[Mapping[str, float]]]
) -> dict[str, list[float]]:
    """Returns the score of each item, from 0 to 100, by method."""
    return {
        "both anchors": [_correctness(answer, anchors) for answer, *anchors in label_weights],
        "only the anchor without content": [_correctness(answer, anchors[:1]) for answer, *anchors in label_weights],
        "not calibrated": [_correctness(answer, [_UNIFORM]) for answer, *_ in label_weights],
        "words shared with the reference answer": [_overlap(item) for item in items],
    }


def _correctness(weights: Mapping[str, float], anchors: Sequence[Mapping[str, float]]) -> float:
    return Probabilities.calibrated(weights, anchors=anchors).correctness


def _overlap(item: Item) -> float:
    reference_words = set(re.findall(r"\w+", item.criteria.reference_answer.lower()))
    shared_words = reference_words & set(re.findall(r"\w+", item.answer.lower()))
    return 100 * len(shared_words) / max(1, len(reference_words))


if __name__ == "__main__":
    main()
