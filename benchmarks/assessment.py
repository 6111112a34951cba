"""How well a verdict agrees with teachers: area under the ROC curve and accuracy of `correctness` against `is_correct`.

    python -m benchmarks.assessment FOLDER [--items 200] [--seed 7]

The folder holds bodies of StartClone as `*.json`, with `question`, `reference_answer`, `student_answer` and
`is_correct` in each response. Prints one JSON line a figure; what leaves out a step of the method is measured on the
same answers in the same run.
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
from brain_server.assess.grading import LABELS, Criteria, Probabilities
from brain_server.engine.contract import Engine
from brain_server.settings import BrainSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.settings import load_settings
from testing.waiting import until_loaded

_EVEN = dict.fromkeys(LABELS, 1 / len(LABELS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An answer that a teacher has judged."""

    criteria: Criteria
    answer: str
    is_correct: bool


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description="Agreement of verdicts with teachers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    items = sample(args.folder, count=args.items, seed=args.seed)
    asyncio.run(_measure(items, seed=args.seed))


def sample(folder: Path, *, count: int, seed: int) -> list[Item]:
    """As many right answers as wrong ones, none twice."""
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
    """The chance that a right answer scores above a wrong one; ties count half."""
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
        facts = await until_loaded(engine)
        started = time.monotonic()
        weighed = [await _weigh(engine, item) for item in items]
        seconds = time.monotonic() - started
    truths = [item.is_correct for item in items]
    scored = {
        "anchors at both ends": [_correctness(weights, anchors) for weights, *anchors in weighed],
        "anchor without content alone": [_correctness(weights, anchors[:1]) for weights, *anchors in weighed],
        "not calibrated": [_correctness(weights, [_EVEN]) for weights, *_ in weighed],
        "words shared with the reference answer": [_overlap(item) for item in items],
    }
    for method, scores in scored.items():
        right = sum((score >= 50) is truth for score, truth in zip(scores, truths, strict=True))
        line = {
            "benchmark": "assessment",
            "method": method,
            "auc": round(area_under_curve(scores, truths), 3),
            "accuracy_at_50": round(right / len(items), 3),
            "items": len(items),
            "seed": seed,
            "seconds_an_item": round(seconds / len(items), 2),
            "base_model": facts.model,
            "dtype": facts.dtype,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {facts.device}",
        }
        print(json.dumps(line), flush=True)


async def _weigh(engine: Engine, item: Item) -> list[Mapping[str, float]]:
    """The labels' probabilities for the answer, then for each anchor."""
    answers = (item.answer, *grading.anchors_of(item.criteria))
    return [await engine.weigh(grading.prompt_for(answer, item.criteria), LABELS) for answer in answers]


def _correctness(weights: Mapping[str, float], anchors: Sequence[Mapping[str, float]]) -> float:
    return Probabilities.calibrated(weights, anchors=anchors).correctness


def _overlap(item: Item) -> float:
    words = set(re.findall(r"\w+", item.criteria.reference_answer.lower()))
    shared = words & set(re.findall(r"\w+", item.answer.lower()))
    return 100 * len(shared) / max(1, len(words))


if __name__ == "__main__":
    main()
