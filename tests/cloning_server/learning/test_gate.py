"""The gate: which adapters pass, which do not, and that the error says why."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cloning_server.compute.batch_decoding import Decoding, decode_all
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.examples import LearnedExample
from cloning_server.examples.situations import Situation
from cloning_server.learning.gate import (
    FAULT_CLAUSES,
    GateFigures,
    ReplyStatistics,
    gate_faults,
    measure_replies,
    openings_of,
    prompts_to_reply,
    replies_in,
    require_passed,
)
from cloning_server.learning.passes import Passes
from mesh.errors import GateNotPassed
from mesh.lm.chat import Prompt, Role, Turn, encode_example
from mesh.lm.lora import LoraSpec
from mesh.main_brain.base import BaseModel
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import FormRules
from mesh.tutoring.policy import Guidance, GuidanceLevel, MistakeKind, Scaffolding, TeachingPolicy
from testing.lessons import ITEMS, PROFILE
from testing.policy import FEW_MISTAKES, SHORT_WRITING

GOOD = ReplyStatistics(
    count=8,
    empty=0,
    looping=0,
    well_formed=5,
    mean_tokens=40.0,
    verdicts=4,
    agreeing=4,
    unjudged=4,
    judging=0,
    alike=0,
    alike_starts=2,
    signs=24,
    signs_shown=16,
)
BASE = replace(GOOD, looping=1, well_formed=1, mean_tokens=90.0, signs_shown=5)
PASSING = GateFigures(loss=1.5, base_loss=2.5, previous_loss=1.6, replies=GOOD, base_replies=BASE, example_replies=GOOD)
POLICY = TeachingPolicy(
    writing=SHORT_WRITING,
    scaffolding=Scaffolding(judged=24, skills=()),
    mistakes=replace(FEW_MISTAKES, kind=MistakeKind.MISSPELT),
    guidance=Guidance(level=GuidanceLevel.MUCH, answers=24, requests=20),
    interests=("space travel",),
)
OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def passing(base: dict[str, int] | None = None, examples: dict[str, int] | None = None, **replies: int) -> GateFigures:
    """Figures that pass but for the given counts."""
    return replace(
        PASSING,
        replies=replace(GOOD, **replies),
        base_replies=replace(BASE, **(base or {})),
        example_replies=replace(GOOD, **(examples or {})),
    )


FAULTS: list[tuple[GateFigures, str]] = [
    (replace(PASSING, loss=2.5, previous_loss=None), "loss_above_base"),
    (replace(PASSING, loss=float("nan")), "loss_above_base"),
    (replace(PASSING, loss=1.6), "loss_above_previous"),
    (passing(empty=1), "empty_replies"),
    (passing(looping=6), "looping_replies"),
    (replace(PASSING, replies=replace(GOOD, mean_tokens=5.0)), "short_replies"),
    (passing(well_formed=3, base={"well_formed": 5}), "form_below_base"),
    (passing(agreeing=2), "verdicts_contradicted"),
    (passing(judging=2), "judges_unanswered"),
    (passing(judging=4, base={"judging": 2}), "judges_unanswered"),
    (passing(alike=5), "replies_alike"),
    (passing(count=4, alike=3), "replies_alike"),
    (passing(alike_starts=8), "replies_alike"),
    (passing(signs_shown=3), "policy_not_shown"),
]


def test_a_better_adapter_passes_with_and_without_a_previous_version() -> None:
    require_passed(PASSING)
    require_passed(replace(PASSING, previous_loss=None))
    require_passed(replace(PASSING, replies=replace(GOOD, well_formed=1)))


def test_the_form_is_not_judged_on_a_few_replies() -> None:
    few = replace(GOOD, count=7, well_formed=0)
    assert gate_faults(replace(PASSING, replies=few, base_replies=replace(BASE, count=7, well_formed=7))) == []


@pytest.mark.parametrize(
    "figures",
    [
        passing(agreeing=3),
        # The base model leaves them out as often.
        passing(agreeing=0, base={"agreeing": 1}),
        passing(verdicts=8, agreeing=6, base={"verdicts": 8, "agreeing": 8}),
        passing(verdicts=1, agreeing=0, base={"verdicts": 1, "agreeing": 1}),
    ],
)
def test_a_verdict_that_one_reply_misses_may_be_chance(figures: GateFigures) -> None:
    assert gate_faults(figures) == []


@pytest.mark.parametrize("figures", [passing(judging=1), passing(judging=3, base={"judging": 2})])
def test_one_judgement_more_than_the_base_models_may_be_misread(figures: GateFigures) -> None:
    assert gate_faults(figures) == []


@pytest.mark.parametrize(
    "figures",
    [
        passing(alike=4),
        passing(count=3, alike=3),
        passing(alike_starts=7),
        # The teacher wrote one comment below all answers.
        passing(alike=8, alike_starts=8, examples={"alike": 8}),
        passing(alike_starts=8, base={"alike_starts": 8}),
    ],
)
def test_replies_may_be_alike_where_they_are_few_or_where_others_are_too(figures: GateFigures) -> None:
    assert gate_faults(figures) == []


def test_the_policy_is_judged_on_many_replies_and_by_more_than_one_sign() -> None:
    assert gate_faults(passing(signs_shown=4)) == []
    assert gate_faults(passing(count=7, signs_shown=0, base={"count": 7})) == []


@pytest.mark.parametrize(("figures", "fault"), FAULTS)
def test_an_adapter_that_is_no_better_or_has_collapsed_does_not_pass_and_the_facts_say_why(
    figures: GateFigures, fault: str
) -> None:
    assert fault in gate_faults(figures)
    with pytest.raises(GateNotPassed) as refused:
        require_passed(figures)
    assert fault in str(refused.value.facts["faults"])
    assert FAULT_CLAUSES[fault] in str(refused.value)
    assert "_" not in str(refused.value)
    assert refused.value.facts["heldout_loss_base"] == 2.5


def test_every_fault_is_explained_to_teachers() -> None:
    section = OPERATIONS.read_text().split("## When a clone does not pass the gate")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, flags=re.MULTILINE))
    assert rows == {fault: f"{clause[0].upper()}{clause[1:]}." for fault, clause in FAULT_CLAUSES.items()}
    assert set(rows) == {fault for _, fault in FAULTS}


def learned(
    base: BaseModel, reply: str, *, item: int = 0, situation: Situation = Situation.EXPLAIN, verdict: str = ""
) -> LearnedExample:
    prompt = Prompt(profile=PROFILE, turns=(Turn(role=Role.STUDENT, text=ITEMS[item][0]),))
    example = encode_example(base.tokenizer, prompt, reply)
    return LearnedExample(
        tokens=example.tokens,
        reply_start=example.reply_start,
        item=ITEMS[item][0],
        situation=situation,
        verdict=AnswerVerdict(verdict) if verdict else None,
    )


def measured(base: BaseModel, replies: Sequence[str], examples: Sequence[LearnedExample]) -> ReplyStatistics:
    continuations = replies_in([learned(base, reply) for reply in replies])
    return measure_replies(base, continuations, examples=examples, rules=FormRules(), policy=POLICY)


def test_a_reply_states_the_verdict_that_its_prompt_tells(small_base: BaseModel) -> None:
    examples = [
        learned(small_base, "That is right.", situation=Situation.FEEDBACK, verdict="correct"),
        learned(small_base, "That is not right yet.", situation=Situation.FEEDBACK, verdict="incorrect"),
        # A teacher who leaves the verdict out teaches to leave it out.
        learned(small_base, "Look at the picture.", situation=Situation.FEEDBACK, verdict="incorrect"),
    ]
    sound = measured(small_base, ["Yes, that is correct.", "Not quite right yet.", "Look up."], examples)
    assert (sound.verdicts, sound.agreeing) == (2, 2)
    broken = measured(small_base, ["That is not right.", "Yes, that is correct.", "You are right."], examples)
    assert (broken.verdicts, broken.agreeing) == (2, 0)


def test_a_reply_judges_nothing_where_its_prompt_tells_no_verdict(small_base: BaseModel) -> None:
    situations = (Situation.EXPLAIN, Situation.CHECK, Situation.HINT)
    examples = [learned(small_base, "Look at the question.", situation=situation) for situation in situations]
    broken = measured(small_base, ["The heart pumps blood.", "Your answer is right.", "Well done!"], examples)
    assert (broken.verdicts, broken.unjudged, broken.judging) == (0, 3, 2)


def test_replies_with_the_same_words_to_different_questions_are_alike(small_base: BaseModel) -> None:
    examples = [learned(small_base, "Look.", item=item) for item in range(4)]
    collapsed = measured(small_base, ["Look at  it.", "look at it", "Look at it!", "Name a part."], examples)
    assert (collapsed.alike, collapsed.are_alike) == (3, True)
    # One question may get one reply.
    same = [learned(small_base, "Look.", situation=situation) for situation in Situation]
    assert measured(small_base, ["Look at it."] * 4, same).alike == 0


def test_replies_that_begin_with_the_same_sentence_whatever_the_situation_are_alike(small_base: BaseModel) -> None:
    examples = [
        learned(small_base, "Look.", item=item, situation=situation) for item, situation in enumerate(Situation)
    ]
    replies = [f"Let's look at it. {reference}" for _, reference, _ in ITEMS[:4]]
    assert measured(small_base, replies, examples).are_alike
    assert not measured(small_base, [*replies[:3], "Begin here. Look."], examples).are_alike
    wrong = [
        learned(small_base, "No.", item=item, situation=Situation.FEEDBACK, verdict="incorrect") for item in range(4)
    ]
    assert not measured(small_base, replies, wrong).are_alike


def test_the_signs_of_the_policy_are_counted(small_base: BaseModel) -> None:
    examples = [learned(small_base, "Look.", item=item) for item in range(2)]
    shown = "Look here. Check how it is spelled. Think of a trip to space. Tell me which part is hard."
    counts = measured(
        small_base, [shown, "The heart is an organ that pumps blood through the body all day long."], examples
    )
    assert (counts.signs, counts.signs_shown) == (8, 4)


def test_prompts_with_and_without_a_verdict_are_mixed_and_the_choice_is_repeatable(small_base: BaseModel) -> None:
    told = [
        learned(small_base, "No.", item=item, situation=Situation.FEEDBACK, verdict="incorrect") for item in range(6)
    ]
    untold = [
        learned(small_base, "Look.", item=item, situation=situation)
        for situation in (Situation.EXPLAIN, Situation.CHECK, Situation.HINT)
        for item in range(6)
    ]
    chosen = prompts_to_reply([*told, *untold])
    assert chosen == prompts_to_reply([*told, *untold])
    assert [example.verdict is not None for example in chosen].count(True) == 4
    assert {example.situation for example in chosen} == set(Situation)
    assert len({example.item for example in chosen}) == 6
    assert len(prompts_to_reply(told)) == 6
    assert prompts_to_reply(untold) != untold[:8]
    assert len(prompts_to_reply([*told[:1], *untold])) == 8


def test_the_replies_of_a_model_that_repeats_itself_count_as_looping(base: BaseModel, passes: Passes) -> None:
    examples = [learned(base, "Look again.", item=item) for item in range(2)]
    broken = LoraFactors(base.model, LoraSpec(), seed=1)
    broken.vector.data.fill_(0.05)
    openings = [
        opening for factors in (broken, None) for opening in openings_of(base, factors, examples, unrepeated_run=0)
    ]
    (continuations,) = decode_all([Decoding(layers=passes.layers, openings=openings)])
    measure = partial(measure_replies, base, examples=examples, policy=POLICY)
    replies = measure(continuations[:2], rules=FormRules(ends_with_question=True))
    assert replies.count == replies.looping == 2
    assert replies.well_formed == 0
    sound = measure(continuations[2:], rules=FormRules())
    assert sound.looping == 0
    assert sound.well_formed == 2
