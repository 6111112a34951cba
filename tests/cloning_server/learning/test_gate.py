"""The gate: what it lets through, what it does not, and that the figures say why."""

from dataclasses import replace

import pytest

from cloning_server.compute.batch_decoding import Decoding, decode_all
from cloning_server.compute.layers import Layers
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.gate import Figures, Replies, faults_of, measure_replies, openings_of, require_passed
from mesh.errors import GateNotPassed
from mesh.lm.base import BaseModel
from mesh.lm.chat import Prompt, Role, Turn, encode_example
from mesh.lm.lora import LoraSpec
from mesh.tutoring.form import FormRules
from testing.lessons import ITEMS, PROFILE

GOOD = Replies(count=6, empty=0, looping=0, well_formed=4, mean_tokens=40.0)
BASE = Replies(count=6, empty=0, looping=1, well_formed=1, mean_tokens=90.0)
PASSING = Figures(
    loss=1.5, base_loss=2.5, previous_loss=1.6, replies=GOOD, base_replies=BASE, taught_tokens=40.0
)  # fmt: skip


def test_what_is_better_passes_with_a_previous_version_and_without() -> None:
    require_passed(PASSING)
    require_passed(replace(PASSING, previous_loss=None))
    require_passed(replace(PASSING, replies=replace(GOOD, well_formed=1)))


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        (replace(PASSING, loss=2.5, previous_loss=None), "loss_above_base"),
        (replace(PASSING, loss=1.6), "loss_above_previous"),
        (replace(PASSING, replies=replace(GOOD, empty=1)), "empty_replies"),
        (replace(PASSING, replies=replace(GOOD, looping=5)), "looping_replies"),
        (replace(PASSING, replies=replace(GOOD, mean_tokens=5.0)), "short_replies"),
        (replace(PASSING, replies=replace(GOOD, well_formed=0)), "form_below_base"),
        (replace(PASSING, loss=float("nan")), "loss_above_base"),
    ],
)
def test_what_is_no_better_or_collapsed_does_not_pass_and_the_facts_say_why(figures: Figures, fault: str) -> None:
    assert fault in faults_of(figures)
    with pytest.raises(GateNotPassed) as refused:
        require_passed(figures)
    assert fault in str(refused.value.facts["faults"])
    assert refused.value.facts["heldout_loss_base"] == 2.5


def test_a_model_that_says_one_thing_only_is_seen_to_go_round_in_circles(base: BaseModel) -> None:
    prompts = [Prompt(profile=PROFILE, turns=(Turn(role=Role.STUDENT, text=question),)) for question, _, _ in ITEMS[:2]]
    examples = [encode_example(base.tokenizer, prompt, "Look again.") for prompt in prompts]
    broken = LoraFactors(base.model, LoraSpec(), seed=1)
    broken.vector.data.fill_(0.05)
    openings = [*openings_of(base, broken, examples), *openings_of(base, None, examples)]
    (said,) = decode_all([Decoding(layers=Layers(base.model), openings=openings)])
    replies = measure_replies(base, said[:2], rules=FormRules(ends_with_question=True))
    assert replies.count == replies.looping == 2
    assert replies.well_formed == 0
    sound = measure_replies(base, said[2:], rules=FormRules())
    assert sound.looping == 0
    assert sound.well_formed == 2
