"""How much of a student is in their adapter: held-out loss with it, with another's, and with none.

    python -m benchmarks.personalization FOLDER [--students N] [--responses N] [--epochs N] [--work DIR] [--out DIR]

The folder holds StartClone requests as `NAME.json`, each with `NAME.heldout.json` beside it. Adapters are fine-tuned by
the product's own code and measured on replies to the held-out answers, which are made as a clone makes them. No gate
is applied: all adapters count. Prints one JSON line a figure; `--work` keeps what was made, so that a run can be broken
off and gone on with.
"""

import argparse
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import personalization_report
from benchmarks.adapted import Scores, Workshop, losses, targets_of, without_profile
from benchmarks.bootstrap import Interval, interval_of_mean
from benchmarks.figures import Figure, Goal, Results
from benchmarks.students import BenchmarkStudent, common_questions, read_students
from cloning_server.clone import Baseline
from mesh import log
from mesh.lm.base import load_base
from mesh.settings import BaseModelSettings, load_settings

OWN = "own"
# What the own adapter is compared with, and what each shows.
RIVALS = {
    "classmate": "an adapter of another student's answers to the same questions, under this student's profile",
    "stranger": "the adapter of a student of another profile",
    "base_profile": "the base model with the same prompt",
    "base_bare": "the base model without a profile in its prompt",
}


def main() -> None:
    """Measures, prints, and writes the report."""
    args = _parser().parse_args()
    # Standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    settings = load_settings(BaseModelSettings)
    base = load_base(settings.base_model, cache_dir=settings.model_cache_dir, device=args.device, dtype=args.dtype)
    workshop = Workshop(base, folder=args.work, epochs=args.epochs, seed=args.seed)
    students = read_students(args.folder)
    if args.alike:
        # Those of one profile beside each other, so that the first few have each other.
        alike = [student for student in students if _has_classmate(student, students)]
        students = sorted(alike, key=lambda student: (repr(student.baseline.profile), student.student_id))
    students = students[: args.students]
    comparisons = compare_all(students, seed=args.seed)
    conditions = {"base_model": base.name, "students": len(students), "responses": args.responses}
    conditions |= {"epochs": args.epochs, "seed": args.seed, "dtype": str(base.dtype).removeprefix("torch.")}
    path = args.out / "personalization.jsonl"
    results = Results(path, conditions=conditions)
    scored = (
        (comparison, score(comparison, comparisons, workshop, responses=args.responses))
        for comparison in comparisons.values()
    )
    for figure in figures_of(scored, seed=args.seed):
        results.add(figure)
    personalization_report.write(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Whose answers make what a student's adapter is compared with.

    Attributes:
        student: The one who is scored.
        classmate: Answered the same questions, which alone make both adapters: neither has seen a held-out one.
        stranger: Has another profile; None if there is no such student.
    """

    student: BenchmarkStudent
    classmate: BenchmarkStudent
    stranger: BenchmarkStudent | None

    def own(self, responses: int) -> Baseline:
        """The student's answers."""
        return self._answers_of(self.student, responses)

    def swapped(self, responses: int) -> Baseline:
        """The classmate's answers to the same questions, under the student's profile."""
        return self._answers_of(self.classmate, responses)

    def _answers_of(self, whose: BenchmarkStudent, responses: int) -> Baseline:
        questions = common_questions(self.student, self.classmate)[:responses]
        return replace(
            self.student.baseline, responses=whose.answers_to(questions), assessment_id="", overall_score=None
        )


def compare_all(students: Sequence[BenchmarkStudent], *, seed: int) -> dict[str, Comparison]:
    """A comparison a student, with others drawn by a seed; the classmate is of the same profile if anybody is."""
    comparisons = {}
    for student in students:
        draws = random.Random(f"{seed} {student.student_id}")
        others = [candidate for candidate in students if candidate is not student]
        alike = [candidate for candidate in others if candidate.baseline.profile == student.baseline.profile]
        different = [candidate for candidate in others if candidate not in alike]
        comparisons[student.student_id] = Comparison(
            student=student,
            classmate=draws.choice(alike or others),
            stranger=draws.choice(different) if different else None,
        )
    return comparisons


def score(
    comparison: Comparison, comparisons: Mapping[str, Comparison], workshop: Workshop, *, responses: int
) -> dict[str, Scores]:
    """The held-out losses of one student under all that is compared."""
    student, own, stranger = comparison.student, comparison.own(responses), comparison.stranger
    heldout = replace(student.baseline, responses=student.heldout)
    targets = targets_of(heldout, record=own.responses, workshop=workshop)
    makers = {OWN: own, "classmate": comparison.swapped(responses)}
    if stranger:
        makers["stranger"] = comparisons[stranger.student_id].own(responses)
    return {
        "base_bare": losses(workshop.base, without_profile(targets), None),
        "base_profile": losses(workshop.base, targets, None),
        **{name: losses(workshop.base, targets, workshop.adapter(baseline)) for name, baseline in makers.items()},
    }


def figures_of(scored: Iterable[tuple[Comparison, Mapping[str, Scores]]], *, seed: int) -> Iterator[Figure]:
    """A figure a student as they are scored, then of all: how much better the own adapters are, and for how many."""
    pairs: dict[str, list[tuple[Scores, Scores]]] = {}
    for number, (comparison, scores) in enumerate(scored):
        yield _of_student(comparison, scores, seed=seed + number)
        for rival in RIVALS:
            if rival in scores:
                pairs.setdefault(rival, []).append((scores[OWN], scores[rival]))
    for rival, score_pairs in pairs.items():
        yield from _of_all(rival, score_pairs, seed=seed)


def _of_student(comparison: Comparison, scores: Mapping[str, Scores], *, seed: int) -> Figure:
    student, items = comparison.student, len(scores[OWN].nats)
    facts: dict[str, object] = {
        "student": student.student_id,
        "classmate_is": comparison.classmate.student_id,
        "classmate_has_the_profile": comparison.classmate.baseline.profile == student.baseline.profile,
        "items": items,
        # Those for which no reply could be distilled that fits the student.
        "items_without_reply": len(student.heldout) - items,
    }
    for rival in RIVALS:
        if rival in scores:
            ahead = advantage(scores[OWN], scores[rival], seed=seed)
            facts |= {rival: scores[rival].mean, f"{rival}_ahead": ahead.value}
            facts |= {f"{rival}_low": ahead.low, f"{rival}_high": ahead.high}
    return Figure(
        figure="heldout_loss_own",
        value=scores[OWN].mean,
        unit="nats/token",
        baseline=scores["classmate"].mean,
        baseline_of="a classmate's adapter",
        facts=facts,
    )


def _of_all(rival: str, pairs: Sequence[tuple[Scores, Scores]], *, seed: int) -> Iterator[Figure]:
    ahead = [advantage(own, other, seed=seed + number) for number, (own, other) in enumerate(pairs)]
    overall = interval_of_mean([interval.value for interval in ahead], seed=seed)
    yield Figure(
        figure=f"own_ahead_of_{rival}",
        value=overall.value,
        unit="nats/token",
        baseline_of=RIVALS[rival],
        facts={"low": overall.low, "high": overall.high, "students": len(pairs)},
    )
    yield Figure(
        figure=f"students_whose_own_beats_{rival}",
        value=sum(interval.value > 0 for interval in ahead),
        unit="students",
        baseline=len(pairs),
        baseline_of="all students",
        # Most of them.
        goal=Goal(of="ratio", at_least=0.5 + 1e-9),
        facts={
            "clearly": sum(interval.low > 0 for interval in ahead),
            "clearly_not": sum(interval.high < 0 for interval in ahead),
        },
    )


def advantage(own: Scores, other: Scores, *, seed: int) -> Interval:
    """How many nats a token the own adapter is better by, paired by item."""
    tokens = own.tokens
    behind = [(theirs - ours) / count for ours, theirs, count in zip(own.nats, other.nats, tokens, strict=True)]
    return interval_of_mean(behind, weights=tokens, seed=seed)


def _has_classmate(student: BenchmarkStudent, students: Sequence[BenchmarkStudent]) -> bool:
    return any(
        candidate is not student and candidate.baseline.profile == student.baseline.profile for candidate in students
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.personalization", description="How much of a student is in their adapter."
    )
    parser.add_argument("folder", type=Path, help="students, two files each")
    parser.add_argument("--students", type=int, help="the first so many; all by default")
    parser.add_argument("--alike", action="store_true", help="only those who share their profile with another")
    parser.add_argument("--responses", type=int, default=70, help="that each adapter learns from, at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of training, of who is compared, and of the intervals")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("build/personalization"), help="keeps what was made")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
