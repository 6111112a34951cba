"""What an adapter knows of its student: held-out loss, and how often replies show the student's teaching policy.

    python -m benchmarks.personalization FOLDER [--pairs N] [--limit N] [--work DIR] [--out DIR] [--name NAME]

The folder holds StartClone requests as `NAME.json`, each with a `NAME.heldout.json`. The product's own code fine-tunes
the adapters, and distils the replies to the held-out answers on which they are measured. No gate is applied, so all
adapters count. Each arm replies greedily to the held-out questions, and `policy_checks` reads the replies. Prints one
JSON line per figure. `--work` stores replies, losses and adapters, with which an interrupted run resumes. Processes
side by side may each measure a share of the students, `--share 1/8` to `--share 8/8`; a last run without `--share` then
puts all together.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import personalization_report
from benchmarks.adapter_trainer import AdapterTrainer, Scores
from benchmarks.comparisons import Comparison, Share, chosen_students, compare_all
from benchmarks.figures import Results
from benchmarks.heldout_questions import (
    HeldoutQuestion,
    ReplyArm,
    ReplyDecoder,
    norm_of,
    prompt_of,
    questions_of,
    targets_of,
)
from benchmarks.personalization_figures import (
    CLASSMATE,
    MAIN_BRAIN,
    OWN,
    PROMPT,
    TAUGHT,
    StudentOutcome,
    overall_figures,
    student_figure,
    tally_differing,
    tally_known,
)
from benchmarks.policy_checks import guidance_in, habits_in, scaffold_in
from benchmarks.stored_losses import StoredLosses
from benchmarks.students import read_students
from cloning_server.clone import Baseline
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.learning.passes import Passes
from curriculum.lesson import Lesson
from curriculum.library import load_lessons
from mesh import log
from mesh.lm.chat import encode_prompt
from mesh.main_brain.base import BaseModel, load_base
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings, load_settings
from mesh.tutoring.policy import TeachingPolicy


def main() -> None:
    """Measures all students and writes the report."""
    args = _parser().parse_args()
    # Logs go to standard error; standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    settings = load_settings(BaseModelSettings)
    brain = _load(settings, roles_folders(settings.roles_dir), args)
    plain = _load(settings, (), args)
    students = chosen_students(read_students(args.folder), pairs=args.pairs, alike=args.alike)[: args.students]
    comparisons = compare_all(students, seed=args.seed)
    bench = PersonalizationBench(
        trainer=AdapterTrainer(
            brain, folder=args.work, epochs=args.epochs, seed=args.seed, process=args.share.file_suffix
        ),
        plain=brain if plain.digest == brain.digest else plain,
        comparisons=comparisons,
        lessons=load_lessons(),
        args=args,
    )
    if args.share.count > 1:
        for comparison in args.share.of(list(comparisons.values())):
            outcome = bench.measure(comparison)
            print(json.dumps({"measured": outcome.student_id}), flush=True)
        return
    path = args.out / f"{args.name}.jsonl"
    results = Results(path, conditions=_conditions(brain, has_tutor=plain.digest != brain.digest, args=args))
    outcomes = []
    for number, comparison in enumerate(comparisons.values()):
        outcome = bench.measure(comparison)
        results.add(student_figure(outcome, seed=args.seed + number))
        if args.replies:
            _write_replies(args.replies, outcome)
        outcomes.append(outcome)
    for figure in overall_figures(outcomes, seed=args.seed):
        results.add(figure)
    personalization_report.write(path)


class PersonalizationBench:
    """Measures students one after another.

    Args:
        trainer: Trains adapters on the Main Brain.
        plain: The base weights without a tutor.
        comparisons: All students to measure, by id.
        lessons: Their replies show how hard replies at a grade are.
        args: Options of the command line.
    """

    def __init__(
        self,
        *,
        trainer: AdapterTrainer,
        plain: BaseModel,
        comparisons: Mapping[str, Comparison],
        lessons: Sequence[Lesson],
        args: argparse.Namespace,
    ) -> None:
        self._trainer = trainer
        self._plain = plain
        self._plain_passes = trainer.passes if plain is trainer.base else Passes(plain.model)
        self._comparisons = comparisons
        self._lessons = lessons
        self._responses: int | None = args.responses
        self._limit: int | None = args.limit
        suffix = f"{args.share.file_suffix}.json"
        self._decoder = ReplyDecoder(trainer, path=args.work / f"decoded{suffix}", max_tokens=args.reply_tokens)
        self._losses = StoredLosses(args.work / f"losses{suffix}")

    def measure(self, comparison: Comparison) -> StudentOutcome:
        """Trains what is missing, and returns the losses and replies of all arms for one student."""
        student, own, classmate = comparison.student, *self._baselines(comparison)
        policy, other_policy = compute_policy(own), compute_policy(classmate)
        heldout = replace(student.baseline, responses=student.heldout[: self._limit])
        questions = questions_of(heldout, policy=policy, trainer=self._trainer)
        arms = list(self._arms(comparison))
        replies = self._decoder.replies(questions, arms, policy)
        taught = [question for question in questions if question.target]
        texts_of = {name: (questions, texts) for name, texts in replies.items()}
        texts_of[TAUGHT] = (taught, [question.target for question in taught])
        norm = norm_of(student.baseline.profile, self._lessons)
        return StudentOutcome(
            student_id=student.student_id,
            classmate_id=comparison.classmate.student_id,
            is_same_profile=comparison.classmate.baseline.profile == student.baseline.profile,
            scores=self._scores(questions, arms, policy),
            questions=questions,
            replies=replies,
            policy_tokens=self._policy_tokens(questions, policy),
            aims={name: tally_known(items, texts, policy, norm) for name, (items, texts) in texts_of.items()},
            differing={
                name: tally_differing(items, texts, (policy, other_policy), norm)
                for name, (items, texts) in texts_of.items()
            },
            places={name: statistics.mean(map(norm.place_of, texts)) for name, (_, texts) in texts_of.items()},
        )

    def _baselines(self, comparison: Comparison) -> tuple[Baseline, Baseline]:
        return comparison.own_baseline(self._responses), comparison.classmate_baseline(self._responses)

    def _arms(self, comparison: Comparison) -> Iterator[ReplyArm]:
        own, classmate = self._baselines(comparison)
        yield ReplyArm(name=MAIN_BRAIN)
        yield ReplyArm(name=PROMPT, has_policy=True)
        if comparison.stranger:
            rival = self._comparisons[comparison.stranger.student_id]
            yield self._adapter_arm("stranger", rival.own_baseline(self._responses))
        yield self._adapter_arm(CLASSMATE, classmate)
        yield self._adapter_arm(OWN, own)

    def _adapter_arm(self, name: str, baseline: Baseline) -> ReplyArm:
        return ReplyArm(
            name=name, factors=self._trainer.adapter(baseline), adapter_name=self._trainer.name_of(baseline)
        )

    def _scores(
        self, questions: Sequence[HeldoutQuestion], arms: Sequence[ReplyArm], policy: TeachingPolicy
    ) -> dict[str, Scores]:
        trainer, targets = self._trainer, targets_of(questions)
        with_policy = targets_of(questions, policy_in_prompt=policy)
        by_arm = {
            arm.name: self._losses.of(trainer.base, trainer.passes, with_policy if arm.has_policy else targets, arm)
            for arm in arms
        }
        return by_arm | {"base": self._losses.of(self._plain, self._plain_passes, targets, ReplyArm(name="base"))}

    def _policy_tokens(self, questions: Sequence[HeldoutQuestion], policy: TeachingPolicy) -> list[int]:
        tokenizer = self._trainer.base.tokenizer
        return [
            len(encode_prompt(tokenizer, prompt_of(question, policy))) - len(encode_prompt(tokenizer, question.prompt))
            for question in questions
        ]


def _load(settings: BaseModelSettings, roles_dirs: Sequence[Path], args: argparse.Namespace) -> BaseModel:
    return load_base(
        settings.base_model,
        cache_dir=settings.model_cache_dir,
        roles_dirs=roles_dirs,
        device=args.device,
        dtype=args.dtype,
    )


def _conditions(brain: BaseModel, *, has_tutor: bool, args: argparse.Namespace) -> dict[str, object]:
    options = ("pairs", "students", "responses", "limit", "epochs", "seed", "reply_tokens")
    return {
        "base_model": brain.name,
        "main_brain": brain.digest,
        "has_tutor": has_tutor,
        "folder": args.folder.name,
        **{name: getattr(args, name) for name in options},
        "dtype": str(brain.dtype).removeprefix("torch."),
    }


def _write_replies(path: Path, outcome: StudentOutcome) -> None:
    """Adds the replies, and what the checks read from them, to a file of JSON lines, for people to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for arm, replies in outcome.replies.items():
            for question, reply in zip(outcome.questions, replies, strict=True):
                line = {
                    "student": outcome.student_id,
                    "arm": arm,
                    "situation": question.situation,
                    "asked": question.prompt.turns[-1].text,
                    "reply": reply,
                    "scaffold": scaffold_in(reply),
                    "habits": sorted(habits_in(reply)),
                    "guidance": guidance_in(reply),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.personalization", description="Measures what an adapter knows of its student."
    )
    parser.add_argument("folder", type=Path, help="students, with two files each: NAME.json and NAME.heldout.json")
    parser.add_argument("--pairs", type=int, help="maximum number of pairs of classmates; all students by default")
    parser.add_argument("--students", type=int, help="maximum number of students; all by default")
    parser.add_argument("--alike", action="store_true", help="only students who share their profile with another one")
    parser.add_argument("--share", type=Share.parse, default=Share(), help="measure a share alone, such as 3/8")
    parser.add_argument("--limit", type=int, help="maximum number of held-out questions per student; all by default")
    parser.add_argument("--responses", type=int, help="maximum number of responses per adapter; all by default")
    parser.add_argument("--epochs", type=int, default=2, help="number of epochs")
    parser.add_argument("--reply-tokens", type=int, default=160, help="length limit of replies")
    parser.add_argument("--seed", type=int, default=0, help="seed of training, of the rivals, and of the intervals")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--replies", type=Path, metavar="FILE", help="adds all replies to this file, to read them")
    parser.add_argument(
        "--work", type=Path, default=Path("build/personalization"), help="folder for replies and adapters"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    parser.add_argument("--name", default="personalization", help="name of the results' files")
    return parser


if __name__ == "__main__":
    main()
