"""The gate: which adapters pass, which do not, and that the error says why."""

from dataclasses import replace

import pytest

from cloning_server.compute.batch_decoding import Decoding, decode_all
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.gate import (
    GateFigures,
    ReplyStatistics,
    gate_faults,
    measure_replies,
    openings_of,
    require_passed,
)
from cloning_server.learning.passes import Passes
from mesh.errors import GateNotPassed
from mesh.lm.chat import Prompt, Role, Turn, encode_example
from mesh.lm.lora import LoraSpec
from mesh.main_brain.base import BaseModel
from mesh.tutoring.form import FormRules
from testing.lessons import ITEMS, PROFILE

GOOD = ReplyStatistics(count=8, empty=0, looping=0, well_formed=5, mean_tokens=40.0)
BASE = ReplyStatistics(count=8, empty=0, looping=1, well_formed=1, mean_tokens=90.0)
PASSING = GateFigures(
    loss=1.5, base_loss=2.5, previous_loss=1.6, replies=GOOD, base_replies=BASE, example_tokens=40.0
)  # fmt: skip


def test_a_better_adapter_passes_with_and_without_a_previous_version() -> None:
    require_passed(PASSING)
    require_passed(replace(PASSING, previous_loss=None))
    require_passed(replace(PASSING, replies=replace(GOOD, well_formed=1)))


def test_the_form_is_not_judged_on_a_few_replies() -> None:
    few = replace(GOOD, count=7, well_formed=0)
    assert gate_faults(replace(PASSING, replies=few, base_replies=replace(BASE, count=7, well_formed=7))) == []


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        (replace(PASSING, loss=2.5, previous_loss=None), "loss_above_base"),
        (replace(PASSING, loss=1.6), "loss_above_previous"),
        (replace(PASSING, replies=replace(GOOD, empty=1)), "empty_replies"),
        (replace(PASSING, replies=replace(GOOD, looping=6)), "looping_replies"),
        (replace(PASSING, replies=replace(GOOD, mean_tokens=5.0)), "short_replies"),
        (replace(PASSING, replies=replace(GOOD, well_formed=0)), "form_below_base"),
        (replace(PASSING, loss=float("nan")), "loss_above_base"),
    ],
)
def test_an_adapter_that_is_no_better_or_has_collapsed_does_not_pass_and_the_facts_say_why(
    figures: GateFigures, fault: str
) -> None:
    assert fault in gate_faults(figures)
    with pytest.raises(GateNotPassed) as refused:
        require_passed(figures)
    assert fault in str(refused.value.facts["faults"])
    assert refused.value.facts["heldout_loss_base"] == 2.5


def test_the_replies_of_a_model_that_repeats_itself_count_as_looping(base: BaseModel, passes: Passes) -> None:
    prompts = [Prompt(profile=PROFILE, turns=(Turn(role=Role.STUDENT, text=question),)) for question, _, _ in ITEMS[:2]]
    examples = [encode_example(base.tokenizer, prompt, "Look again.") for prompt in prompts]
    broken = LoraFactors(base.model, LoraSpec(), seed=1)
    broken.vector.data.fill_(0.05)
    openings = [*openings_of(base, broken, examples), *openings_of(base, None, examples)]
    (continuations,) = decode_all([Decoding(layers=passes.layers, openings=openings)])
    replies = measure_replies(base, continuations[:2], rules=FormRules(ends_with_question=True))
    assert replies.count == replies.looping == 2
    assert replies.well_formed == 0
    sound = measure_replies(base, continuations[2:], rules=FormRules())
    assert sound.looping == 0
    assert sound.well_formed == 2
