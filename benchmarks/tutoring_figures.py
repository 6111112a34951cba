"""The figures of the tutoring benchmark: what situations and the replies to them come to."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, Goal
from benchmarks.tutoring_checks import is_stuck, kendall_tau, settles
from benchmarks.tutoring_situations import Situation
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.judgement import agrees, contains_answer, judges
from mesh.tutoring.profile import GRADES, Disability
from mesh.tutoring.reading_level import reading_grade
from mesh.tutoring.teaching import rules_of

_LESSONS_OWN = "the lessons' own replies"
_FEEDBACK = frozenset({"feedback", "made feedback", "assess"})
# A child in distress needs a few kind words; the form of `Assess` leaves no room for steps.
_FREE_FORM = frozenset({"feelings", "assess"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SituationReply:
    """A situation, and what was replied to it; `is_cut` if the reply reached its longest length."""

    situation: Situation
    reply: str
    is_cut: bool = False


def figures_of(items: Sequence[SituationReply]) -> Iterator[Figure]:
    """Yields the figures of replies to situations of all kinds but the ladder and the sums."""
    unanswered = [item for item in items if item.situation.name in {"explain", "hint", "frame"}]
    if unanswered:
        yield _judging(unanswered)
    if answered := [item for item in items if item.situation.name in _FEEDBACK]:
        yield _agreement(answered)
    if withholding := [item for item in items if _withholds(item.situation)]:
        yield _leaking(withholding)
    if shaped := [item for item in items if item.situation.name not in _FREE_FORM]:
        yield from _forms(shaped)
    yield _stuck(items)


def ladder_figure(items: Sequence[tuple[str, SituationReply]]) -> Figure:
    """Returns how well the level of the replies follows the grade that was asked for."""
    levels = [
        (GRADES.index(grade), reading_grade(item.reply), item.situation.id)
        for grade, item in items
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


def sums_figure(items: Sequence[SituationReply]) -> Figure:
    """Returns how many answers to expressions are confirmed or corrected."""
    settled = [item for item in items if _is_settled(item)]
    return Figure(
        figure="sums_confirmed_or_corrected",
        value=len(settled),
        unit="sums",
        baseline=len(items),
        baseline_of="all of them",
        goal=Goal(of="ratio", at_least=1),
        facts={"missed": [item.situation.id for item in items if item not in settled]},
    )


def _judging(items: Sequence[SituationReply]) -> Figure:
    judged = [item for item in items if judges(item.reply)]
    return Figure(
        figure="replies_that_judge_where_nothing_was_answered",
        value=len(judged),
        unit=f"of {len(items)} replies",
        goal=Goal(of="value", at_most=0),
        facts={"by_situation": _by_situation(judged, items), "of_the_lessons_own": _own(items, judges)},
    )


def _agreement(items: Sequence[SituationReply]) -> Figure:
    verdicts = [(item, verdict) for item in items if (verdict := _verdict(item.situation))]
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
            "by_situation": _by_situation(agreeing, items),
        },
    )


def _leaking(items: Sequence[SituationReply]) -> Figure:
    def leaks(item: SituationReply, reply: str) -> bool:
        # An answer that stands in the student's own messages is no secret: "Read this word: pig", "I put a dash". A
        # prompt of `Assess` does not count: it holds the reference answer, which the student has not seen.
        student_turns = () if item.situation.schema else item.situation.prompt.turns[::2]
        messages = "\n".join(turn.text for turn in student_turns)
        secrets = [answer for answer in item.situation.withheld if not contains_answer(messages, answer)]
        return any(contains_answer(reply, answer) for answer in secrets)

    leaked = [item for item in items if leaks(item, item.reply)]
    return Figure(
        figure="replies_that_say_a_withheld_answer",
        value=len(leaked) / len(items),
        unit="",
        baseline=_share([leaks(item, item.situation.lesson_reply) for item in items if item.situation.lesson_reply]),
        baseline_of=_LESSONS_OWN,
        goal=Goal(of="value", at_most=0.1),
        facts={"replies": len(items), "by_situation": _by_situation(leaked, items)},
    )


def _forms(items: Sequence[SituationReply]) -> Iterator[Figure]:
    """The share of replies that meet the form of their profile: overall, then for each disability."""
    # Without counts and phrases, so that like faults are counted together.
    faults = Counter(
        re.sub(r"\d+|, at most.*| '.*", "", fault).replace("has  ", "too many ")
        for item in items
        for fault in _form_faults(item, item.reply)
    )
    yield _form_figure("form_rules_met", items, least=0.85, facts={"faults": dict(faults.most_common(8))})
    for disability in Disability:
        members = [item for item in items if item.situation.prompt.profile.disability is disability]
        if members:
            yield _form_figure(f"form_rules_met_{disability}", members, least=0.8, facts={})


def _form_figure(name: str, items: Sequence[SituationReply], *, least: float, facts: Mapping[str, object]) -> Figure:
    met = [item for item in items if not _form_faults(item, item.reply)]
    own = [not _form_faults(item, item.situation.lesson_reply) for item in items if item.situation.lesson_reply]
    return Figure(
        figure=name,
        value=len(met) / len(items),
        unit="",
        baseline=_share(own),
        baseline_of=_LESSONS_OWN if own else "",
        goal=Goal(of="value", at_least=least),
        facts={"replies": len(items), "by_situation": _by_situation(met, items), **facts},
    )


def _stuck(items: Sequence[SituationReply]) -> Figure:
    stuck = [item for item in items if is_stuck(item.reply)]
    return Figure(
        figure="replies_that_circle_or_are_empty",
        value=len(stuck) / len(items),
        unit="",
        goal=Goal(of="value", at_most=0.01),
        facts={
            "replies": len(items),
            "of_the_lessons_own": _own(items, is_stuck),
            "cut_at_the_longest": sum(item.is_cut for item in items),
        },
    )


def _statement(item: SituationReply, reply: str) -> str:
    """Where a reply states its verdict: the first text of feedback in the form of `Assess`, else anywhere in it."""
    return reply.partition("\n")[0] if item.situation.schema else reply


def _form_faults(item: SituationReply, reply: str) -> list[str]:
    return rules_of(item.situation.prompt.profile).violations(reply)


def _withholds(situation: Situation) -> bool:
    """Whether the reply should keep an answer back: a hint, or feedback on a wrong answer."""
    is_wrong = _verdict(situation) is AnswerVerdict.INCORRECT and situation.name in _FEEDBACK
    return bool(situation.withheld) and (situation.name == "hint" or is_wrong)


def _verdict(situation: Situation) -> AnswerVerdict | None:
    return situation.prompt.assessment.verdict if situation.prompt.assessment else None


def _is_settled(item: SituationReply) -> bool:
    verdict = _verdict(item.situation)
    return verdict is not None and settles(item.reply, verdict, item.situation.withheld[0])


def _by_situation(some: Sequence[SituationReply], items: Sequence[SituationReply]) -> dict[str, str]:
    counts = Counter(item.situation.name for item in some)
    return {
        name: f"{counts[name]} of {count}" for name, count in Counter(item.situation.name for item in items).items()
    }


def _own(items: Sequence[SituationReply], holds: Callable[[str], bool]) -> int:
    """How many of the lessons' own replies a check holds for."""
    return sum(holds(item.situation.lesson_reply) for item in items if item.situation.lesson_reply)


def _share(outcomes: Iterable[bool]) -> float | None:
    listed = list(outcomes)
    return sum(listed) / len(listed) if listed else None
