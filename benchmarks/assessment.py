"""How well verdicts agree with teachers', and how long an assessment takes.

    python -m benchmarks.assessment FILE ... [--train FILE] [--limit N]    graded answers, JSON lines
    python -m benchmarks.assessment --products                             multiplication, and the time of Assess

A line of a file has `qid`, `question`, `reference_answers`, `answer` and a label (`label2` or `label`), as in the sets
that `curriculum.answers` reads. Of several right
answers, the prompt names the one that shares most words with the student's answer.
Everything goes through the product's `Assessor`, with the engine and the Main Brain of the settings (`BASE_MODEL`,
`ROLES_DIR`). A score of 50 or more says that an answer is right.

Beside it, on the same answers in the same run: the most frequent label for all of them, and word overlap with logistic
regression, fitted on `--train FILE` (`benchmarks.lexical_grader`). Answers that code compared as numbers have figures
of their own, because no model had a part in them.

Prints JSON lines; the first one describes the machine and the Main Brain. Writes `results/assessment.jsonl`.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.assessment_items import EVERYDAY_ITEMS, Product, new_products
from benchmarks.figures import Figure, Goal, Results, percentiles
from benchmarks.lexical_grader import LexicalGrader
from benchmarks.main_brain import conditions_of, gather, open_main_brain
from brain_server.assess.assessor import ARITHMETIC, Assessment, Assessor, Grade
from brain_server.settings import BrainSettings
from curriculum.answers import GradedAnswer, read_graded
from curriculum.metrics import agreement, f1_of, likeliest, macro_f1
from mesh import log
from mesh.lm.grading import CORRECT
from mesh.settings import load_settings
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.profile import StudentProfile

_METRICS = ("macro_f1_two_way", "macro_f1_labels", "auc", "calibration_error")
# Targets for the default base model, by the start of a file's name.
_LEAST_MACRO_F1 = {
    "sciEntsBank.test-unseen-answers": 0.82,
    "sciEntsBank.test-unseen-questions": 0.74,
    "sciEntsBank.test-unseen-domains": 0.72,
}
_MOST_CALIBRATION_ERROR = 0.08
_LEXICAL = "word overlap, logistic regression"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well graded answers agree with their labels.

    Attributes:
        figures: `_METRICS` by name.
        labels: Precision, recall and F1 of each label that occurs.
    """

    figures: dict[str, float]
    labels: dict[str, dict[str, float]]


def main() -> None:
    """Prints and writes the figures."""
    parser = _parser()
    args = parser.parse_args()
    if not args.files and not args.products:
        parser.error("name a file of graded answers, or --products")
    # Logs go to standard error; standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    asyncio.run(_measure(args))


def agreement_of(probabilities: Sequence[Sequence[float]], answers: Sequence[GradedAnswer]) -> Agreement:
    """Returns how well the probabilities of `LABELS` agree with the answers' labels."""
    labels = [answer.label for answer in answers]
    guesses = likeliest(probabilities)
    return Agreement(
        figures=agreement(probabilities, labels),
        labels={label: _quality_of(label, guesses, labels) for label in set(labels)},
    )


async def file_figures(
    name: str, answers: Sequence[GradedAnswer], assessor: Assessor, lexical: LexicalGrader | None
) -> list[Figure]:
    """Returns the figures of one file: of the answers that the grader judged, of those that code decided, and time."""
    started_at = time.monotonic()
    grades = await gather(
        [assessor.grade(answer.answer, answer.criteria(answer.closest_reference)) for answer in answers], title=name
    )
    seconds = (time.monotonic() - started_at) / len(answers)
    pairs = list(zip(answers, grades, strict=True))
    graded = [(answer, grade) for answer, grade in pairs if grade.grader != ARITHMETIC]
    decided = [(answer, grade) for answer, grade in pairs if grade.grader == ARITHMETIC]
    return [
        *(_agreement_figures(name, graded, lexical) if graded else ()),
        *(_decided_figures(name, decided) if decided else ()),
        Figure(figure=f"{name}_seconds_per_answer", value=seconds, unit="s", facts={"answers": len(answers)}),
    ]


async def product_figures(assessor: Assessor) -> AsyncIterator[Figure]:
    """Yields how many products are judged right, then how long a whole Assess takes."""
    products = new_products()
    grades = [await assessor.grade(product.answer, product.criteria) for product in products]
    yield Figure(
        figure="products_judged_right",
        value=sum(_agrees(product, grade) for product, grade in zip(products, grades, strict=True)),
        unit="products",
        baseline=len(products),
        baseline_of="all products, half of them answered right",
        goal=Goal(of="ratio", at_least=1),
        facts={"decided": dict(Counter(grade.grader for grade in grades))},
    )
    yield await _assess_figure(assessor)


async def _measure(args: argparse.Namespace) -> None:
    async with open_main_brain(load_settings(BrainSettings)) as (engine, facts):
        assessor = Assessor(engine)
        results = Results(args.out / "assessment.jsonl", conditions=conditions_of(facts) | {"limit": args.limit})
        lexical = LexicalGrader(read_graded(args.train)) if args.train else None
        for path in args.files:
            answers = _some(read_graded(path), args.limit)
            for figure in await file_figures(path.stem, answers, assessor, lexical):
                results.add(figure)
        if args.products:
            async for figure in product_figures(assessor):
                results.add(figure)


def _agreement_figures(
    name: str, graded: Sequence[tuple[GradedAnswer, Grade]], lexical: LexicalGrader | None
) -> Iterator[Figure]:
    answers = [answer for answer, _ in graded]
    own = agreement_of([_row(grade) for _, grade in graded], answers)
    by_overlap = agreement_of(lexical.probabilities(answers), answers) if lexical else None
    majority = _majority(answers)
    graders = dict(Counter(grade.grader for _, grade in graded))
    for metric in _METRICS:
        facts: dict[str, object] = {
            "majority": majority.get(metric),
            "answers": len(answers),
            "decided": "grader",
            "graders": graders,
        }
        if metric == "macro_f1_labels":
            facts["labels"] = own.labels
        yield Figure(
            figure=f"{name}_{metric}",
            value=own.figures[metric],
            unit="",
            baseline=by_overlap.figures[metric] if by_overlap else None,
            baseline_of=_LEXICAL if by_overlap else "",
            goal=_goal(name, metric),
            facts=facts,
        )


def _decided_figures(name: str, decided: Sequence[tuple[GradedAnswer, Grade]]) -> Iterator[Figure]:
    right = sum((grade.probabilities.correctness >= 50) is (answer.label == CORRECT) for answer, grade in decided)
    facts = {"answers": len(decided), "decided": ARITHMETIC}
    yield Figure(figure=f"{name}_agreement_of_code", value=right / len(decided), unit="", facts=facts)


async def _assess_figure(assessor: Assessor) -> Figure:
    """The time of an Assess from the answer to the whole feedback, one after another."""
    seconds: list[float] = []
    tokens = 0
    for question, reference, answer in (EVERYDAY_ITEMS[0], *EVERYDAY_ITEMS):
        criteria = Criteria(question=question, reference_answer=reference)
        assessment = Assessment(answer=answer, criteria=criteria, profile=StudentProfile(grade="5", subject="Science"))
        started_at = time.monotonic()
        verdict = await assessor.assess(assessment)
        seconds.append(time.monotonic() - started_at)
        tokens += verdict.tokens
    # The first one warms up.
    del seconds[0]
    return Figure(
        figure="assess_with_feedback",
        value=percentiles(seconds)["p50"],
        unit="s",
        facts={**percentiles(seconds), "assessments": len(seconds), "mean_tokens": tokens / (len(seconds) + 1)},
    )


def _agrees(product: Product, grade: Grade) -> bool:
    return (grade.probabilities.correctness >= 50) is product.is_right


def _row(grade: Grade) -> tuple[float, float, float]:
    likely = grade.probabilities
    return likely.correct, likely.partially_correct, likely.incorrect


def _majority(answers: Sequence[GradedAnswer]) -> dict[str, float]:
    """Returns macro-F1 of the best guess that reads no answer."""
    labels = [answer.label for answer in answers]
    truths = [str(label == CORRECT) for label in labels]
    columns = {"macro_f1_two_way": truths, "macro_f1_labels": labels}
    return {
        metric: macro_f1([Counter(column).most_common(1)[0][0]] * len(column), column)
        for metric, column in columns.items()
    }


def _quality_of(label: str, guesses: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    hits = sum(guess == actual == label for guess, actual in zip(guesses, labels, strict=True))
    return {
        "precision": round(hits / max(1, guesses.count(label)), 4),
        "recall": round(hits / labels.count(label), 4),
        "f1": round(f1_of(label, guesses, labels), 4),
        "answers": labels.count(label),
    }


def _goal(name: str, metric: str) -> Goal | None:
    if metric == "macro_f1_two_way" and name in _LEAST_MACRO_F1:
        return Goal(of="value", at_least=_LEAST_MACRO_F1[name])
    return Goal(of="value", at_most=_MOST_CALIBRATION_ERROR) if metric == "calibration_error" else None


def _some(answers: Sequence[GradedAnswer], limit: int | None) -> Sequence[GradedAnswer]:
    if limit is None or limit >= len(answers):
        return answers
    return random.Random(7).sample(list(answers), limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.assessment", description="Measures how well verdicts agree with teachers'."
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="graded answers, JSON lines")
    parser.add_argument("--train", type=Path, metavar="FILE", help="graded answers that the baseline is fitted on")
    parser.add_argument("--limit", type=int, help="answers per file, drawn at random; all by default")
    parser.add_argument("--products", action="store_true", help="new products, and the time of a whole Assess")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
