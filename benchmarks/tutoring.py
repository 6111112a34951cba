"""What the Main Brain says to students: whether it judges, agrees, keeps answers back, fits the student, and ends.

    python -m benchmarks.tutoring [--sets FOLDER] [--sampling greedy default] [--limit N] [--replies FILE]

Asks what training never saw: held-out lessons, framed questions, and answers of public sets (`--sets` is a folder with
`grading/` and `explanations/`; without it the lines that need them are left out). Prompts are prepared as the brain's
edge does, and the engine decodes 16 at once. Everything is measured twice: greedy, and as serving samples by default
(temperature 0.7, top-p 0.9, seeds fixed). The lessons' own replies stand beside, read by the same checks: no reply can
be expected to do better.

Prints JSON lines; the first one describes the machine and the Main Brain. Then prints how five conversations begin, for
people to read. Writes `results/tutoring.jsonl`. `--limit` keeps a few situations of each kind, only to see that the
benchmark works.
"""

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import tutoring_situations as situations_of
from benchmarks.figures import Figure, Results
from benchmarks.main_brain import conditions_of, open_main_brain, replies_to
from benchmarks.tutoring_figures import SituationReply, figures_of, ladder_figure, sums_figure
from benchmarks.tutoring_loss import loss_figures
from benchmarks.tutoring_situations import Situation
from brain_server.assess.feedback import parse
from brain_server.engine.contract import Engine, FinishReason, Generation, Reply, Sampling
from brain_server.settings import BrainSettings
from curriculum.lesson import Kind, Lesson
from curriculum.library import is_held_out, load_lessons
from mesh import log
from mesh.settings import load_settings
from mesh.tutoring.judgement import judgement_in, judges

SAMPLINGS: Mapping[str, Sampling] = {"greedy": Sampling(temperature=0.0), "default": Sampling()}
_UNANSWERED = 200
_MADE = 100


def main() -> None:
    """Prints and writes the figures."""
    args = _parser().parse_args()
    # Logs go to standard error; standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    asyncio.run(_measure(args))


async def _measure(args: argparse.Namespace) -> None:
    settings = load_settings(BrainSettings)
    lessons = [lesson for lesson in load_lessons() if is_held_out(lesson)]
    situations = _situations(lessons, args)
    async with open_main_brain(settings) as (engine, facts):
        conditions = conditions_of(facts) | {"limit": args.limit, "sets": args.sets is not None}
        results = Results(args.out / "tutoring.jsonl", conditions=conditions | {"batch": settings.max_batch})
        for name in args.sampling:
            for figure in await _sampled_figures(engine, situations, name, args):
                results.add(figure)
        conversations = {
            name: await _ask(engine, situations_of.conversations(), name, title="conversations")
            for name in args.sampling
        }
    # The engine's model is gone by now, so that two models never take memory at once.
    _add_losses(results, settings, lessons, args)
    for name, items in conversations.items():
        _print_conversations(name, items)


def _add_losses(results: Results, settings: BrainSettings, lessons: Sequence[Lesson], args: argparse.Namespace) -> None:
    plain = args.sets / "explanations" / "entailmentbank.dev.jsonl" if args.sets else None
    plain = plain if plain and plain.is_file() else None
    some = [lesson for kind in Kind for lesson in [member for member in lessons if member.kind is kind][: args.limit]]
    for figure in loss_figures(settings, some, plain):
        results.add(figure)


def _situations(lessons: Sequence[Lesson], args: argparse.Namespace) -> list[Situation]:
    """Everything to ask but the ladder and the sums."""
    graded = args.sets / "grading" if args.sets else None
    groups = [
        situations_of.unanswered(lessons, count=_UNANSWERED),
        situations_of.answered(lessons),
        situations_of.made_feedback(graded, count=_MADE) if graded else [],
        situations_of.assessed(lessons),
        situations_of.other_talk(lessons),
    ]
    return [situation for group in groups for situation in group[: args.limit]]


async def _sampled_figures(
    engine: Engine, situations: Sequence[Situation], name: str, args: argparse.Namespace
) -> list[Figure]:
    items = await _ask(engine, situations, name, title="lessons and answers")
    steps = situations_of.ladder(situations_of.LADDER_QUESTIONS[: args.limit])
    at_grades = await _ask(engine, [situation for _, situation in steps], name, title="grades")
    sums = await _ask(engine, situations_of.sums(), name, title="sums")
    if args.replies:
        _write_replies(args.replies, name, [*items, *at_grades, *sums])
    ladder = [(grade, item) for (grade, _), item in zip(steps, at_grades, strict=True)]
    figures = [*figures_of(items), ladder_figure(ladder), sums_figure(sums)]
    return [
        replace(figure, figure=f"{figure.figure}_{name}", facts={**figure.facts, "sampling": name})
        for figure in figures
    ]


async def _ask(engine: Engine, situations: Sequence[Situation], sampling: str, *, title: str) -> list[SituationReply]:
    generations = [
        Generation(prompt=situation.prompt, json_schema=situation.schema or None) for situation in situations
    ]
    replies = await replies_to(engine, generations, SAMPLINGS[sampling], title=f"{title}, {sampling}")
    return [
        SituationReply(
            situation=situation, reply=_read(situation, reply), is_cut=reply.finish_reason is FinishReason.LENGTH
        )
        for situation, reply in zip(situations, replies, strict=True)
    ]


def _read(situation: Situation, reply: Reply) -> str:
    """Returns what the student reads: the reply, or the texts of feedback as JSON, one per line."""
    if not situation.schema or reply.finish_reason is FinishReason.LENGTH:
        return reply.text
    feedback = parse(reply.text)
    lists = (*feedback.strengths, *feedback.areas_for_improvement)
    return "\n".join((feedback.feedback, *lists, feedback.next_steps))


def _print_conversations(sampling: str, items: Sequence[SituationReply]) -> None:
    print(f"\nFive conversations, {sampling}:")
    for item in items:
        print("\n>", " ".join(item.situation.id.split()))
        print(item.reply, flush=True)


def _write_replies(path: Path, sampling: str, items: Sequence[SituationReply]) -> None:
    """Adds the replies to a file of JSON lines, for people to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for item in items:
            prompt = item.situation.prompt
            line = {
                "situation": item.situation.name,
                "id": item.situation.id,
                "sampling": sampling,
                "grade": prompt.profile.grade,
                "disability": prompt.profile.disability,
                "verdict": prompt.assessment.verdict if prompt.assessment else None,
                "student": prompt.turns[-1].text,
                "reply": item.reply,
                "says": judgement_in(item.reply),
                "judges": judges(item.reply),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tutoring", description="Measures what the Main Brain says to students."
    )
    parser.add_argument("--sets", type=Path, metavar="FOLDER", help="public sets, with grading/ and explanations/")
    parser.add_argument(
        "--sampling", nargs="+", choices=tuple(SAMPLINGS), default=list(SAMPLINGS), help="how to decode"
    )
    parser.add_argument("--limit", type=int, help="situations per kind; all by default")
    parser.add_argument("--replies", type=Path, metavar="FILE", help="adds all replies to this file, to read them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
