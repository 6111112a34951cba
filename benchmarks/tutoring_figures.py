"""The figures of the tutoring benchmark: what situations and the replies to them come to."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, Goal
from benchmarks.tutoring_checks import agrees, is_stuck, kendall_tau, settles
from benchmarks.tutoring_situations import Situation
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.judgement import contains_answer, judges
from mesh.tutoring.profile import GRADES, Disability
from mesh.tutoring.reading_level import reading_grade
from mesh.tutoring.teaching import rules_of

_LESSONS_OWN = "the lessons' own replies"
_FEEDBACK = frozenset({"feedback", "made feedback", "assess"})
# A child in distress needs a few kind words; the form of `Assess` leaves no room for steps.
_FREE_FORM = frozenset({"feelings", "assess"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A situation, and what was replied to it; `is_cut` if the reply reached its longest length."""

    situation: Situation
    reply: str
    is_cut: bool = False


def figures_of(told: Sequence[Told]) -> Iterator[Figure]:
    """Yields the figures of replies to situations of all kinds but the ladder and the sums."""
    unanswered = [item for item in told if item.situation.name in {"explain", "hint", "frame"}]
    if unanswered:
        yield _judging(unanswered)
    if answered := [item for item in told if item.situation.name in _FEEDBACK]:
        yield _agreement(answered)
    if withholding := [item for item in told if _withholds(item.situation)]:
        yield _leaking(withholding)
    if shaped := [item for item in told if item.situation.name not in _FREE_FORM]:
        yield from _forms(shaped)
    yield _stuck(told)


def ladder_figure(told: Sequence[tuple[str, Told]]) -> Figure:
    """Returns how well the level of the replies follows the grade that was asked for."""
    levels = [
        (GRADES.index(grade), reading_grade(item.reply), item.situation.id)
        for grade, item in told
        if any(letter.isalpha() for letter in item.reply)
    ]
    questions = sorted({question for _, _, question in levels})
    per_question = [kendall_tau([(grade, level) for grade, level, asked in levels if asked == q]) for q in questions]
    means = {
        GRADES[grade]: round(statistics.mean(level for other, level, _ in levels if other == grade), 2)
        for grade in sorted({grade for grade, _, _ in levels})
    }
    return Figure(
        figure="grade_asked_against_grade_read",
        value=kendall_tau([(grade, level) for grade, level, _ in levels]),
        unit="Kendall tau",
        goal=Goal(of="value", at_least=0.6),
        facts={"mean_tau_of_a_question": statistics.mean(per_question), "mean_level_by_grade": means},
    )


def sums_figure(told: Sequence[Told]) -> Figure:
    """Returns how many answers to expressions are confirmed or corrected."""
    settled = [item for item in told if _is_settled(item)]
    return Figure(
        figure="sums_confirmed_or_corrected",
        value=len(settled),
        unit="sums",
        baseline=len(told),
        baseline_of="all of them",
        goal=Goal(of="ratio", at_least=1),
        facts={"missed": [item.situation.id for item in told if item not in settled]},
    )


def _judging(told: Sequence[Told]) -> Figure:
    judged = [item for item in told if judges(item.reply)]
    return Figure(
        figure="replies_that_judge_where_nothing_was_answered",
        value=len(judged),
        unit=f"of {len(told)} replies",
        goal=Goal(of="value", at_most=0),
        facts={"by_situation": _by_situation(judged, told), "of_the_lessons_own": _own(told, judges)},
    )


def _agreement(told: Sequence[Told]) -> Figure:
    verdicts = [(item, verdict) for item in told if (verdict := _verdict(item.situation))]
    agreed = Counter(verdict for item, verdict in verdicts if agrees(_statement(item, item.reply), verdict))
    counts = Counter(verdict for _, verdict in verdicts)
    agreeing = [item for item, verdict in verdicts if agrees(_statement(item, item.reply), verdict)]
    return Figure(
        figure="feedback_agrees_with_its_verdict",
        value=agreed.total() / len(verdicts),
        unit="",
        baseline=_share(
            agrees(_statement(item, item.situation.lesson_reply), verdict)
            for item, verdict in verdicts
            if item.situation.lesson_reply
        ),
        baseline_of=_LESSONS_OWN,
        goal=Goal(of="value", at_least=0.97),
        facts={
            "replies": len(verdicts),
            "by_verdict": {verdict: f"{agreed[verdict]} of {count}" for verdict, count in counts.items()},
            "by_situation": _by_situation(agreeing, told),
        },
    )


def _leaking(told: Sequence[Told]) -> Figure:
    def leaks(item: Told, reply: str) -> bool:
        return any(contains_answer(reply, answer) for answer in item.situation.withheld)

    leaked = [item for item in told if leaks(item, item.reply)]
    return Figure(
        figure="replies_that_say_a_withheld_answer",
        value=len(leaked) / len(told),
        unit="",
        baseline=_share([leaks(item, item.situation.lesson_reply) for item in told if item.situation.lesson_reply]),
        baseline_of=_LESSONS_OWN,
        goal=Goal(of="value", at_most=0.1),
        facts={"replies": len(told), "by_situation": _by_situation(leaked, told)},
    )


def _forms(told: Sequence[Told]) -> Iterator[Figure]:
    """The share of replies that meet the form of their profile: overall, then for each disability."""
    # Without counts and phrases, so that like faults are counted together.
    faults = Counter(
        re.sub(r"\d+|, at most.*| '.*", "", fault).replace("has  ", "too many ")
        for item in told
        for fault in _form_faults(item, item.reply)
    )
    yield _form_figure("form_rules_met", told, least=0.85, facts={"faults": dict(faults.most_common(8))})
    for disability in Disability:
        members = [item for item in told if item.situation.prompt.profile.disability is disability]
        if members:
            yield _form_figure(f"form_rules_met_{disability}", members, least=0.8, facts={})


def _form_figure(name: str, told: Sequence[Told], *, least: float, facts: Mapping[str, object]) -> Figure:
    met = [item for item in told if not _form_faults(item, item.reply)]
    own = [not _form_faults(item, item.situation.lesson_reply) for item in told if item.situation.lesson_reply]
    return Figure(
        figure=name,
        value=len(met) / len(told),
        unit="",
        baseline=_share(own),
        baseline_of=_LESSONS_OWN if own else "",
        goal=Goal(of="value", at_least=least),
        facts={"replies": len(told), "by_situation": _by_situation(met, told), **facts},
    )


def _stuck(told: Sequence[Told]) -> Figure:
    stuck = [item for item in told if is_stuck(item.reply)]
    return Figure(
        figure="replies_that_circle_or_are_empty",
        value=len(stuck) / len(told),
        unit="",
        goal=Goal(of="value", at_most=0.01),
        facts={
            "replies": len(told),
            "of_the_lessons_own": _own(told, is_stuck),
            "cut_at_the_longest": sum(item.is_cut for item in told),
        },
    )


def _statement(item: Told, reply: str) -> str:
    """Where a reply states its verdict: the first text of feedback in the form of `Assess`, else anywhere in it."""
    return reply.partition("\n")[0] if item.situation.schema else reply


def _form_faults(item: Told, reply: str) -> list[str]:
    return rules_of(item.situation.prompt.profile).violations(reply)


def _withholds(situation: Situation) -> bool:
    """Whether the reply should keep an answer back: a hint, or feedback on a wrong answer."""
    is_wrong = _verdict(situation) is AnswerVerdict.INCORRECT and situation.name in _FEEDBACK
    return bool(situation.withheld) and (situation.name == "hint" or is_wrong)


def _verdict(situation: Situation) -> AnswerVerdict | None:
    return situation.prompt.assessment.verdict if situation.prompt.assessment else None


def _is_settled(item: Told) -> bool:
    verdict = _verdict(item.situation)
    return verdict is not None and settles(item.reply, verdict, item.situation.withheld[0])


def _by_situation(some: Sequence[Told], told: Sequence[Told]) -> dict[str, str]:
    counts = Counter(item.situation.name for item in some)
    return {name: f"{counts[name]} of {count}" for name, count in Counter(item.situation.name for item in told).items()}


def _own(told: Sequence[Told], holds: Callable[[str], bool]) -> int:
    """How many of the lessons' own replies a check holds for."""
    return sum(holds(item.situation.lesson_reply) for item in told if item.situation.lesson_reply)


def _share(outcomes: Iterable[bool]) -> float | None:
    listed = list(outcomes)
    return sum(listed) / len(listed) if listed else None
