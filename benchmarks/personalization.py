"""How much an adapter knows of its student: held-out loss with it, with other students' adapters, and without any.

    python -m benchmarks.personalization FOLDER [--students N] [--responses N] [--epochs N] [--work DIR] [--out DIR]

The folder holds StartClone requests as `NAME.json`, each with a `NAME.heldout.json`. The product's own code fine-tunes
the adapters, and distils the replies to the held-out answers on which they are measured. No gate is applied, so all
adapters count. Prints one JSON line per figure. `--work` stores replies and adapters, with which an interrupted run
resumes.
"""

import argparse
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import personalization_report
from benchmarks.adapter_trainer import AdapterTrainer, Scores, losses, targets_of, without_profile
from benchmarks.bootstrap import Interval, interval_of_mean
from benchmarks.figures import Figure, Goal, Results
from benchmarks.students import BenchmarkStudent, common_questions, read_students
from cloning_server.clone import Baseline
from cloning_server.examples.teaching_policy import compute_policy
from mesh import log
from mesh.main_brain.base import load_base
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings, load_settings

OWN = "own"
# What the student's own adapter is compared with.
RIVALS = {
    "classmate": "an adapter trained on another student's answers to the same questions, with this student's profile",
    "stranger": "the adapter of a student with another profile",
    "base_profile": "the base model with the same prompt",
    "base_bare": "the base model without a profile in its prompt",
}


def main() -> None:
    """Measures all students and writes the report."""
    args = _parser().parse_args()
    # Logs go to standard error; standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    settings = load_settings(BaseModelSettings)
    base = load_base(
        settings.base_model,
        cache_dir=settings.model_cache_dir,
        roles_dirs=roles_folders(settings.roles_dir),
        device=args.device,
        dtype=args.dtype,
    )
    trainer = AdapterTrainer(base, folder=args.work, epochs=args.epochs, seed=args.seed)
    students = read_students(args.folder)
    if args.alike:
        # Sorted by profile, so that the first few students include the classmates of each other.
        with_classmate = [student for student in students if _has_classmate(student, students)]
        students = sorted(with_classmate, key=lambda student: (repr(student.baseline.profile), student.student_id))
    students = students[: args.students]
    comparisons = compare_all(students, seed=args.seed)
    conditions = {"base_model": base.name, "students": len(students), "responses": args.responses}
    conditions |= {"epochs": args.epochs, "seed": args.seed, "dtype": str(base.dtype).removeprefix("torch.")}
    path = args.out / "personalization.jsonl"
    results = Results(path, conditions=conditions)
    comparisons_with_scores = (
        (comparison, score(comparison, comparisons, trainer, responses=args.responses))
        for comparison in comparisons.values()
    )
    for figure in figures_of(comparisons_with_scores, seed=args.seed):
        results.add(figure)
    personalization_report.write(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The student to score, and the students whose answers train the rival adapters.

    Attributes:
        student: The student to score.
        classmate: A student who answered the same questions. Both adapters are trained on these questions only, so
            neither is trained on a held-out one.
        stranger: A student with another profile; None if there is none.
    """

    student: BenchmarkStudent
    classmate: BenchmarkStudent
    stranger: BenchmarkStudent | None

    def own_baseline(self, responses: int) -> Baseline:
        """Returns the student's answers to the first `responses` common questions."""
        return self._baseline(self.student, responses)

    def classmate_baseline(self, responses: int) -> Baseline:
        """Returns the classmate's answers to the same questions, with the student's profile."""
        return self._baseline(self.classmate, responses)

    def _baseline(self, author: BenchmarkStudent, responses: int) -> Baseline:
        questions = common_questions(self.student, self.classmate)[:responses]
        return replace(
            self.student.baseline,
            responses=author.answers_to(questions),
            assessment_id="",
            overall_score=None,
            max_score=author.baseline.max_score,
        )


def compare_all(students: Sequence[BenchmarkStudent], *, seed: int) -> dict[str, Comparison]:
    """Returns a comparison per student, with random rivals; the classmate has the same profile if any student has."""
    comparisons = {}
    for student in students:
        draws = random.Random(f"{seed} {student.student_id}")
        others = [candidate for candidate in students if candidate is not student]
        same_profile = [candidate for candidate in others if candidate.baseline.profile == student.baseline.profile]
        other_profile = [candidate for candidate in others if candidate not in same_profile]
        comparisons[student.student_id] = Comparison(
            student=student,
            classmate=draws.choice(same_profile or others),
            stranger=draws.choice(other_profile) if other_profile else None,
        )
    return comparisons


def score(
    comparison: Comparison, comparisons: Mapping[str, Comparison], trainer: AdapterTrainer, *, responses: int
) -> dict[str, Scores]:
    """Returns the held-out losses of one student with each adapter, and with the base model alone."""
    student, own, stranger = comparison.student, comparison.own_baseline(responses), comparison.stranger
    heldout = replace(student.baseline, responses=student.heldout)
    targets = targets_of(heldout, policy=compute_policy(own), trainer=trainer)
    baselines = {OWN: own, "classmate": comparison.classmate_baseline(responses)}
    if stranger:
        baselines["stranger"] = comparisons[stranger.student_id].own_baseline(responses)
    return {
        "base_bare": losses(trainer, without_profile(targets), None),
        "base_profile": losses(trainer, targets, None),
        **{name: losses(trainer, targets, trainer.adapter(baseline)) for name, baseline in baselines.items()},
    }


def figures_of(
    comparisons_with_scores: Iterable[tuple[Comparison, Mapping[str, Scores]]], *, seed: int
) -> Iterator[Figure]:
    """Yields a figure per student, then how much better own adapters are than each rival, and for how many."""
    pairs: dict[str, list[tuple[Scores, Scores]]] = {}
    for number, (comparison, scores) in enumerate(comparisons_with_scores):
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
        # Held-out answers for which distillation gave no valid reply.
        "items_without_reply": len(student.heldout) - items,
    }
    for rival in RIVALS:
        if rival in scores:
            interval = advantage(scores[OWN], scores[rival], seed=seed)
            facts |= {rival: scores[rival].mean, f"{rival}_ahead": interval.value}
            facts |= {f"{rival}_low": interval.low, f"{rival}_high": interval.high}
    return Figure(
        figure="heldout_loss_own",
        value=scores[OWN].mean,
        unit="nats/token",
        baseline=scores["classmate"].mean,
        baseline_of="a classmate's adapter",
        facts=facts,
    )


def _of_all(rival: str, pairs: Sequence[tuple[Scores, Scores]], *, seed: int) -> Iterator[Figure]:
    intervals = [advantage(own, other, seed=seed + number) for number, (own, other) in enumerate(pairs)]
    overall = interval_of_mean([interval.value for interval in intervals], seed=seed)
    yield Figure(
        figure=f"own_ahead_of_{rival}",
        value=overall.value,
        unit="nats/token",
        baseline_of=RIVALS[rival],
        facts={"low": overall.low, "high": overall.high, "students": len(pairs)},
    )
    yield Figure(
        figure=f"students_whose_own_beats_{rival}",
        value=sum(interval.value > 0 for interval in intervals),
        unit="students",
        baseline=len(pairs),
        baseline_of="all students",
        # More than half of them.
        goal=Goal(of="ratio", at_least=0.5 + 1e-9),
        facts={
            "clearly": sum(interval.low > 0 for interval in intervals),
            "clearly_not": sum(interval.high < 0 for interval in intervals),
        },
    )


def advantage(own: Scores, other: Scores, *, seed: int) -> Interval:
    """Returns by how many nats per token the own adapter's loss is lower, paired by item."""
    items = zip(own.nats, other.nats, own.tokens, strict=True)
    differences = [(other_nats - own_nats) / tokens for own_nats, other_nats, tokens in items]
    return interval_of_mean(differences, weights=own.tokens, seed=seed)


def _has_classmate(student: BenchmarkStudent, students: Sequence[BenchmarkStudent]) -> bool:
    return any(
        candidate is not student and candidate.baseline.profile == student.baseline.profile for candidate in students
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.personalization", description="Measures how much an adapter knows of its student."
    )
    parser.add_argument("folder", type=Path, help="students, with two files each: NAME.json and NAME.heldout.json")
    parser.add_argument("--students", type=int, help="maximum number of students; all by default")
    parser.add_argument("--alike", action="store_true", help="only students who share their profile with another one")
    parser.add_argument("--responses", type=int, default=70, help="maximum number of responses per adapter")
    parser.add_argument("--epochs", type=int, default=3, help="maximum number of epochs")
    parser.add_argument("--seed", type=int, default=0, help="seed of training, of the rivals, and of the intervals")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--work", type=Path, default=Path("build/personalization"), help="folder for replies and adapters"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
