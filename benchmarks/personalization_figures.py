"""The figures of the personalization benchmark: what losses and replies of each arm come to."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.adapter_trainer import Scores
from benchmarks.bootstrap import Interval, interval_of_mean
from benchmarks.figures import Figure, Goal
from benchmarks.heldout_questions import HeldoutQuestion
from benchmarks.policy_checks import PolicyDimension, ReadingNorm, aims_of, differing_aims, is_shown
from benchmarks.tutoring_checks import is_stuck
from cloning_server.examples.situations import Situation
from mesh.tutoring.judgement import judges
from mesh.tutoring.policy import TeachingPolicy

OWN, CLASSMATE, MAIN_BRAIN, PROMPT = "own", "classmate", "main_brain", "policy_prompt"
# Not an arm: the replies that a clone would learn, which no adapter is expected to exceed.
TAUGHT = "taught_replies"
# What the student's own adapter is compared with.
RIVALS = {
    CLASSMATE: "an adapter trained on another student's answers to the same questions, with this student's profile",
    "stranger": "the adapter of a student with another profile",
    PROMPT: "the Main Brain with the student's policy in the prompt",
    MAIN_BRAIN: "the Main Brain with the same prompt",
    "base": "the base weights without a tutor, with the same prompt",
}
# The situations in which no answer was given.
_BARE = frozenset({Situation.EXPLAIN, Situation.HINT})

# Of each dimension: how often it was shown, and how often it could have been.
Tally = Mapping[PolicyDimension, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentOutcome:
    """What was measured of one student.

    Attributes:
        student_id: The student.
        classmate_id: The student whose answers trained the classmate's adapter.
        is_same_profile: Whether the two have the same profile.
        scores: Held-out losses by arm.
        questions: The held-out questions.
        replies: Replies to them by arm.
        policy_tokens: Tokens that the policy adds to each prompt.
        aims: By arm, and of the replies that a clone learns, how often the student's policy was shown in the dimensions
            that are known.
        differing: The same, where the classmate's policy decides otherwise.
        places: Mean place of the replies among lessons at the grade, by arm.
    """

    student_id: str
    classmate_id: str
    is_same_profile: bool
    scores: Mapping[str, Scores]
    questions: Sequence[HeldoutQuestion]
    replies: Mapping[str, Sequence[str]]
    policy_tokens: Sequence[int]
    aims: Mapping[str, Tally]
    differing: Mapping[str, Tally]
    places: Mapping[str, float]


def tally_known(
    questions: Sequence[HeldoutQuestion], replies: Sequence[str], policy: TeachingPolicy, norm: ReadingNorm
) -> Tally:
    """Counts how often replies show a policy, in the dimensions that it knows."""
    return _tally(questions, replies, lambda question: aims_of(policy, question.occasion), norm)


def tally_differing(
    questions: Sequence[HeldoutQuestion],
    replies: Sequence[str],
    policies: tuple[TeachingPolicy, TeachingPolicy],
    norm: ReadingNorm,
) -> Tally:
    """Counts how often replies show the first policy, where the second one decides otherwise."""
    own, other = policies
    return _tally(
        questions,
        replies,
        lambda question: differing_aims(aims_of(own, question.occasion), aims_of(other, question.occasion)),
        norm,
    )


def advantage(own: Scores, other: Scores, *, seed: int) -> Interval:
    """Returns by how many nats per token the own adapter's loss is lower, paired by item."""
    items = zip(own.nats, other.nats, own.tokens, strict=True)
    differences = [(other_nats - own_nats) / tokens for own_nats, other_nats, tokens in items]
    return interval_of_mean(differences, weights=own.tokens, seed=seed)


def student_figure(outcome: StudentOutcome, *, seed: int) -> Figure:
    """Returns the losses of one student, and how often each arm shows their policy."""
    scores, items = outcome.scores, len(outcome.scores[OWN].nats)
    facts: dict[str, object] = {
        "student": outcome.student_id,
        "classmate_is": outcome.classmate_id,
        "classmate_has_the_profile": outcome.is_same_profile,
        "items": items,
        # Held-out questions for which distillation gave no valid reply.
        "items_without_reply": len(outcome.questions) - items,
    }
    for rival in RIVALS:
        if rival in scores:
            interval = advantage(scores[OWN], scores[rival], seed=seed)
            facts |= {rival: scores[rival].mean, f"{rival}_ahead": interval.value}
            facts |= {f"{rival}_low": interval.low, f"{rival}_high": interval.high}
    for name, tally in outcome.aims.items():
        facts |= {f"{name}_shows": _share(tally), f"{name}_shows_differing": _share(outcome.differing[name])}
        facts[f"{name}_reads_at"] = outcome.places[name]
    return Figure(
        figure="heldout_loss_own",
        value=scores[OWN].mean,
        unit="nats/token",
        baseline=scores[CLASSMATE].mean,
        baseline_of="a classmate's adapter",
        facts=facts,
    )


def overall_figures(outcomes: Sequence[StudentOutcome], *, seed: int) -> Iterator[Figure]:
    """Yields how far own adapters are ahead, how often each arm shows the policy, and which replies are no use."""
    for rival in RIVALS:
        pairs = [(item.scores[OWN], item.scores[rival]) for item in outcomes if rival in item.scores]
        if pairs:
            yield from _loss_figures(rival, pairs, seed=seed)
    yield from _policy_figures(outcomes, seed=seed)
    yield from _reply_figures(outcomes)


def _loss_figures(rival: str, pairs: Sequence[tuple[Scores, Scores]], *, seed: int) -> Iterator[Figure]:
    intervals = [advantage(own, other, seed=seed + number) for number, (own, other) in enumerate(pairs)]
    overall = interval_of_mean([interval.value for interval in intervals], seed=seed)
    is_classmate = rival == CLASSMATE
    yield Figure(
        figure=f"own_ahead_of_{rival}",
        value=overall.value,
        unit="nats/token",
        baseline_of=RIVALS[rival],
        facts={"low": overall.low, "high": overall.high, "students": len(pairs)},
    )
    behind = sum(interval.high < 0 for interval in intervals)
    yield Figure(
        figure=f"students_whose_own_beats_{rival}",
        value=sum(interval.value > 0 for interval in intervals),
        unit="students",
        baseline=len(pairs),
        baseline_of="all students",
        goal=Goal(of="ratio", at_least=0.8) if is_classmate else None,
        facts={"clearly": sum(interval.low > 0 for interval in intervals), "clearly_not": behind},
    )
    if is_classmate:
        yield Figure(
            figure="students_whose_own_is_clearly_behind_classmate",
            value=behind,
            unit="students",
            goal=Goal(of="value", at_most=0),
        )


def _policy_figures(outcomes: Sequence[StudentOutcome], *, seed: int) -> Iterator[Figure]:
    arms = dict.fromkeys(name for outcome in outcomes for name in outcome.aims)
    for name in arms:
        known = _sum([outcome.aims[name] for outcome in outcomes if name in outcome.aims])
        if not known:
            continue
        tokens = [count for outcome in outcomes for count in outcome.policy_tokens] if name == PROMPT else []
        yield Figure(
            figure=f"policy_shown_{name}",
            value=_share(known) or 0.0,
            unit="of decisions",
            goal=Goal(of="value", at_least=0.75) if name == OWN else None,
            facts=_dimensions(known) | ({"tokens_in_the_prompt": sum(tokens) / len(tokens)} if tokens else {}),
        )
    for name in arms:
        if name not in {OWN, TAUGHT}:
            yield from _difference(outcomes, name, seed=seed)


def _difference(outcomes: Sequence[StudentOutcome], rival: str, *, seed: int) -> Iterator[Figure]:
    """How much more often own adapters show the policy, where the classmate's policy decides otherwise."""
    pairs = [(outcome.differing[OWN], outcome.differing[rival]) for outcome in outcomes if outcome.differing.get(rival)]
    if not pairs:
        return
    differences = [(_share(own) or 0.0) - (_share(other) or 0.0) for own, other in pairs]
    weights = [_cases(own) for own, _ in pairs]
    interval = interval_of_mean(differences, weights=weights, seed=seed)
    own, other = _sum([own for own, _ in pairs]), _sum([other for _, other in pairs])
    yield Figure(
        figure=f"policy_shown_own_above_{rival}",
        value=interval.value,
        unit="of decisions in which classmates differ",
        goal=Goal(of="value", at_least=0.15) if rival == CLASSMATE else None,
        facts={
            "low": interval.low,
            "high": interval.high,
            "students": len(pairs),
            OWN: _share(own),
            rival: _share(other),
            "own_by_dimension": _dimensions(own),
            f"{rival}_by_dimension": _dimensions(other),
        },
    )


def _reply_figures(outcomes: Sequence[StudentOutcome]) -> Iterator[Figure]:
    yield _of_replies("own_replies_that_circle_or_are_empty", outcomes, is_stuck, goal=Goal(of="value", at_most=0.01))
    yield _of_replies(
        "own_replies_that_judge_a_bare_question", outcomes, judges, situations=_BARE, goal=Goal(of="value", at_most=0)
    )


def _of_replies(
    name: str,
    outcomes: Sequence[StudentOutcome],
    holds: Callable[[str], bool],
    *,
    goal: Goal,
    situations: frozenset[Situation] = frozenset(Situation),
) -> Figure:
    def of_arm(arm: str) -> list[bool]:
        return [
            holds(reply)
            for outcome in outcomes
            for question, reply in zip(outcome.questions, outcome.replies[arm], strict=True)
            if question.situation in situations
        ]

    own, brain = of_arm(OWN), of_arm(MAIN_BRAIN)
    return Figure(
        figure=name,
        value=sum(own) / max(len(own), 1),
        unit="of replies",
        baseline=sum(brain) / max(len(brain), 1),
        baseline_of="the Main Brain",
        goal=goal,
        facts={"replies": len(own), "count": sum(own)},
    )


def _tally(
    questions: Sequence[HeldoutQuestion],
    replies: Sequence[str],
    aims: Callable[[HeldoutQuestion], Mapping[PolicyDimension, object]],
    norm: ReadingNorm,
) -> Tally:
    hits: Counter[PolicyDimension] = Counter()
    cases: Counter[PolicyDimension] = Counter()
    for question, reply in zip(questions, replies, strict=True):
        for dimension, aim in aims(question).items():
            cases[dimension] += 1
            hits[dimension] += is_shown(dimension, aim, reply, norm)
    return {dimension: (hits[dimension], cases[dimension]) for dimension in PolicyDimension if cases[dimension]}


def _sum(tallies: Sequence[Tally]) -> Tally:
    return {
        dimension: (sum(hits for hits, _ in counts), sum(cases for _, cases in counts))
        for dimension in PolicyDimension
        if (counts := [tally[dimension] for tally in tallies if dimension in tally])
    }


def _share(tally: Tally) -> float | None:
    return sum(hits for hits, _ in tally.values()) / cases if (cases := _cases(tally)) else None


def _cases(tally: Tally) -> int:
    return sum(cases for _, cases in tally.values())


def _dimensions(tally: Tally) -> dict[str, object]:
    return {str(dimension): f"{hits} of {cases}" for dimension, (hits, cases) in tally.items()}
