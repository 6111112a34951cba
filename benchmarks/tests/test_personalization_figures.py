"""The figures of the personalization benchmark, from losses and replies written by hand."""

from collections.abc import Mapping, Sequence

import pytest

from benchmarks.adapter_trainer import Scores
from benchmarks.figures import Figure
from benchmarks.heldout_questions import HeldoutQuestion
from benchmarks.personalization_figures import (
    CLASSMATE,
    MAIN_BRAIN,
    OWN,
    PROMPT,
    StudentOutcome,
    Tally,
    overall_figures,
    student_figure,
)
from benchmarks.policy_checks import Occasion, PolicyDimension
from cloning_server.examples.situations import Situation
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

HABIT, INTEREST = PolicyDimension.HABIT, PolicyDimension.INTEREST
PROMPT_OF_ICE = Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Why does ice melt?"),))


def scores(*nats: float) -> Scores:
    return Scores(nats=nats, tokens=(1,) * len(nats))


def outcome(
    own: Scores,
    classmate: Scores,
    *,
    aims: Mapping[str, Tally] | None = None,
    differing: Mapping[str, Tally] | None = None,
    said: Sequence[str] = ("Ice melts.", "It gets warm."),
) -> StudentOutcome:
    arms = (OWN, CLASSMATE, MAIN_BRAIN, PROMPT)
    situations = (Situation.EXPLAIN, Situation.FEEDBACK)
    return StudentOutcome(
        student_id="ada",
        classmate_id="bo",
        is_same_profile=True,
        scores={OWN: own, CLASSMATE: classmate},
        questions=[
            HeldoutQuestion(
                prompt=PROMPT_OF_ICE, situation=situation, occasion=Occasion(subject="", skill=""), target="It melts."
            )
            for situation in situations
        ],
        replies={arm: said if arm == OWN else ("Ice melts.", "It gets warm.") for arm in arms},
        policy_tokens=(40, 50),
        aims=aims or {arm: {HABIT: (1, 2)} for arm in arms},
        differing=differing or {arm: {HABIT: (1, 2)} for arm in arms},
        places=dict.fromkeys(arms, 0.5),
    )


def figures(*outcomes: StudentOutcome) -> dict[str, Figure]:
    return {figure.figure: figure for figure in overall_figures(outcomes, seed=0)}


def test_students_ahead_and_clearly_behind_are_counted() -> None:
    ahead, behind = outcome(scores(1.0, 1.0), scores(2.0, 2.0)), outcome(scores(2.0, 2.0), scores(1.0, 1.0))
    both = figures(ahead, behind)
    assert both["students_whose_own_beats_classmate"].value == 1
    assert both["students_whose_own_beats_classmate"].met is False
    assert both["students_whose_own_is_clearly_behind_classmate"].value == 1
    assert both["students_whose_own_is_clearly_behind_classmate"].met is False
    alone = figures(ahead)
    assert alone["students_whose_own_beats_classmate"].met
    assert alone["students_whose_own_is_clearly_behind_classmate"].met


def test_policy_decisions_are_pooled_over_students_and_dimensions() -> None:
    same = scores(1.0, 1.0)
    first: dict[str, Tally] = {OWN: {HABIT: (9, 10)}, PROMPT: {HABIT: (2, 10)}}
    second: dict[str, Tally] = {OWN: {INTEREST: (7, 10)}, PROMPT: {INTEREST: (4, 10)}}
    found = figures(outcome(same, same, aims=first), outcome(same, same, aims=second))
    assert found["policy_shown_own"].value == pytest.approx(0.8)
    assert found["policy_shown_own"].met
    assert found["policy_shown_own"].facts == {"habit": "9 of 10", "interest": "7 of 10"}
    assert found["policy_shown_policy_prompt"].value == pytest.approx(0.3)
    assert found["policy_shown_policy_prompt"].facts["tokens_in_the_prompt"] == 45


def test_own_and_classmates_are_compared_where_their_policies_differ() -> None:
    same = scores(1.0, 1.0)
    differing: dict[str, Tally] = {OWN: {HABIT: (8, 10)}, CLASSMATE: {HABIT: (5, 10)}}
    figure = figures(outcome(same, same, aims=differing, differing=differing))["policy_shown_own_above_classmate"]
    assert figure.value == pytest.approx(0.3)
    assert figure.met
    alike: dict[str, Tally] = {OWN: {}, CLASSMATE: {}}
    assert "policy_shown_own_above_classmate" not in figures(outcome(same, same, aims=differing, differing=alike))


def test_only_replies_to_bare_questions_must_not_judge() -> None:
    same, name = scores(1.0, 1.0), "own_replies_that_judge_a_bare_question"
    assert figures(outcome(same, same, said=("Your answer is right.", "Ice melts.")))[name].value == 1
    assert figures(outcome(same, same, said=("Ice melts.", "Your answer is right.")))[name].value == 0


def test_circling_and_empty_replies_of_own_adapters_are_counted() -> None:
    same = scores(1.0, 1.0)
    figure = figures(outcome(same, same, said=("", "It melts. It melts.")))["own_replies_that_circle_or_are_empty"]
    assert (figure.value, figure.baseline, figure.met) == (1, 0, False)


def test_a_students_line_tells_losses_intervals_and_shares() -> None:
    line = student_figure(outcome(scores(1.0, 1.0), scores(2.0, 2.0)), seed=0).line()
    assert (line["value"], line["classmate"], line["classmate_low"]) == (1, 2, 1)
    assert (line["own_shows"], line["classmate_shows_differing"]) == (0.5, 0.5)
