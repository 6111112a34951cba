"""Whether clones answer a question alone as one: no verdict on an answer that nobody gave, no circle, no empty advice.

    python -m benchmarks.bare_questions FOLDER [--students N] [--questions N] [--work DIR] [--out DIR]

The folder holds students as for `benchmarks.personalization`, and the adapters are made as there; one more clone learns
24 products alone. Each is asked questions of held-out lessons, most of which its baseline has nothing to do with, and
replies greedily. Prints one JSON line per figure and writes `results/bare_questions.jsonl`. Then prints, for people to
read, what three of the clones say in the five conversations of `benchmarks.tutoring`, one JSON line per reply. Nothing
screens them, so that one sees what a clone itself says to a sad child.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.adapter_trainer import AdapterTrainer
from benchmarks.comparisons import compare_all
from benchmarks.figures import Figure, Goal, Results
from benchmarks.heldout_questions import HeldoutQuestion, ReplyArm, ReplyDecoder
from benchmarks.policy_checks import Occasion
from benchmarks.students import read_students
from benchmarks.tutoring_checks import is_stuck
from benchmarks.tutoring_situations import conversations
from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.examples.situations import Situation
from cloning_server.examples.teaching_policy import compute_policy
from curriculum.lesson import Kind, Lesson
from curriculum.library import is_held_out, load_lessons
from mesh import log
from mesh.lm.chat import Prompt, Role, Turn
from mesh.main_brain.base import load_base
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings, load_settings
from mesh.tutoring.judgement import judges
from mesh.tutoring.profile import StudentProfile

_REPLY_TOKENS = 160
_PRODUCTS = 24
# Every third product is answered wrongly, by one of the factors.
_WRONG = 3
_EPOCHS = 2
# Students whose conversations are printed.
_CONVERSING = 3
# How a reply that checks an answer begins, with either apostrophe.
_CHECKS = ("Let's", "Let\u2019s")


def main() -> None:
    """Asks all clones and writes the figures."""
    args = _parser().parse_args()
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    settings = load_settings(BaseModelSettings)
    base = load_base(
        settings.base_model, cache_dir=settings.model_cache_dir, roles_dirs=roles_folders(settings.roles_dir)
    )
    trainer = AdapterTrainer(base, folder=args.work, epochs=_EPOCHS, seed=0)
    decoder = ReplyDecoder(trainer, path=args.work / "bare.json", max_tokens=_REPLY_TOKENS)
    lessons = [lesson for lesson in load_lessons() if _is_bare_question(lesson)]
    conditions = {"base_model": base.name, "main_brain": base.digest, "folder": args.folder.name}
    results = Results(args.out / "bare_questions.jsonl", conditions=conditions | {"questions": args.questions})
    replies: list[str] = []
    texts_by_clone: dict[str, list[str]] = {}
    for name, baseline in _baselines(args.folder, args.students):
        questions = _questions_for(baseline.profile, lessons, count=args.questions, draws=random.Random(name))
        arm = ReplyArm(name=name, factors=trainer.adapter(baseline), adapter_name=trainer.name_of(baseline))
        replies_of_clone = decoder.replies(questions, [arm], compute_policy(baseline))[name]
        results.add(clone_figure(name, replies_of_clone))
        replies += replies_of_clone
        if len(texts_by_clone) < _CONVERSING:
            openings = conversations_with(baseline.profile)
            texts_by_clone[name] = decoder.replies(openings, [arm], compute_policy(baseline))[name]
    for figure in figures_of(replies):
        results.add(figure)
    for name, texts in texts_by_clone.items():
        _print_conversations(name, texts)


def conversations_with(profile: StudentProfile) -> list[HeldoutQuestion]:
    """Returns the five conversations as a student of this profile begins them, prepared as the brain's edge does."""
    return [_alone(replace(situation.prompt, profile=profile)) for situation in conversations()]


def clone_figure(name: str, replies: Sequence[str]) -> Figure:
    """Returns how many replies of one clone judge an answer, though nobody gave one."""
    return _figure("replies_of_a_clone_that_judge", sum(map(judges, replies)), len(replies), facts={"clone": name})


def figures_of(replies: Sequence[str]) -> list[Figure]:
    """Returns the figures of all clones' replies, with the goals: none judges, at most 1 % circle or are empty."""
    count = len(replies)
    checks = sum(reply.startswith(_CHECKS) for reply in replies)
    return [
        _figure("replies_that_judge", sum(map(judges, replies)), count, most=0),
        _figure("replies_that_circle_or_are_empty", sum(map(is_stuck, replies)), count, most=count // 100),
        _figure("replies_that_begin_as_a_check", checks, count),
    ]


def _baselines(folder: Path, students: int | None) -> Iterator[tuple[str, Baseline]]:
    for comparison in list(compare_all(read_students(folder), seed=0).values())[:students]:
        yield comparison.student.student_id, comparison.own_baseline(None)
    yield "products", product_baseline()


def product_baseline() -> Baseline:
    """Returns a baseline of products alone, a third of them answered wrongly."""
    draws = random.Random(7)
    pairs = [(draws.randint(2, 12), draws.randint(2, 12)) for _ in range(_PRODUCTS)]
    return Baseline(
        profile=StudentProfile(grade="4", subject="Math"),
        responses=tuple(
            BaselineResponse(
                question=f"What is {first} x {second}?",
                student_answer=str(first * second + (first if place % _WRONG == 0 else 0)),
                reference_answer=str(first * second),
                is_correct=place % _WRONG != 0,
                skill="multiplication",
            )
            for place, (first, second) in enumerate(pairs)
        ),
    )


def _is_bare_question(lesson: Lesson) -> bool:
    return is_held_out(lesson) and lesson.kind is Kind.EXPLAIN and len(lesson.turns) == 1


def _questions_for(
    profile: StudentProfile, lessons: Sequence[Lesson], *, count: int, draws: random.Random
) -> list[HeldoutQuestion]:
    return [
        _alone(
            Prompt(
                profile=replace(profile, subject=lesson.student.subject),
                turns=(Turn(role=Role.STUDENT, text=lesson.turns[0]),),
            )
        )
        for lesson in draws.sample(list(lessons), count)
    ]


def _alone(prompt: Prompt) -> HeldoutQuestion:
    """A prompt that belongs to no skill, and to which no reply is known."""
    return HeldoutQuestion(
        prompt=prompt, situation=Situation.EXPLAIN, occasion=Occasion(subject="", skill=""), target=""
    )


def _print_conversations(name: str, replies: Sequence[str]) -> None:
    for situation, reply in zip(conversations(), replies, strict=True):
        print(json.dumps({"clone": name, "student_says": situation.id, "reply": reply}), flush=True)


def _figure(
    name: str, value: int, replies: int, *, most: int | None = None, facts: Mapping[str, object] | None = None
) -> Figure:
    goal = None if most is None else Goal(of="value", at_most=most)
    return Figure(figure=name, value=value, unit=f"of {replies} replies", goal=goal, facts=facts or {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bare_questions", description="Asks clones questions that nobody answered."
    )
    parser.add_argument("folder", type=Path, help="students, with two files each: NAME.json and NAME.heldout.json")
    parser.add_argument("--students", type=int, help="maximum number of students; all by default")
    parser.add_argument("--questions", type=int, default=20, help="questions to each clone")
    parser.add_argument("--work", type=Path, default=Path("build/personalization"), help="folder for adapters")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
