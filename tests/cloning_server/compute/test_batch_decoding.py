"""Decoding in batches: each row is decoded as it would be alone, and as transformers and PEFT decode it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from cloning_server.compute.batch_decoding import Continuation, Decoding, Draw, Opening, decode_all, group_by_prefix
from cloning_server.compute.layers import PassInput
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.passes import Passes
from mesh.lm.chat import end_of_turn
from mesh.lm.lora import LoraSpec
from mesh.lm.repetition import RunHistory, RunTokens, run_tokens_of
from mesh.main_brain.base import BaseModel

Decode = Callable[..., list[list[Continuation]]]

SPEC = LoraSpec()
TEXTS = (
    "The heart pumps blood through the body. The lungs",
    "The heart pumps blood through the body, and it",
    "The heart pumps blood through the body because",
    "Ice is",
)
GREEDY = Draw()
SAMPLED = Draw(temperature=0.8, top_p=0.9, favour=1.0, seed=3)


@pytest.fixture(scope="module")
def students(precise: BaseModel) -> list[LoraFactors]:
    """Adapters whose factors are all at work."""
    adapters = [LoraFactors(precise.model, SPEC, seed=seed) for seed in (1, 2)]
    for seed, factors in enumerate(adapters):
        factors.vector.data += 0.03 * torch.randn(factors.vector.shape, generator=torch.Generator().manual_seed(seed))
    return adapters


def openings_of(
    base: BaseModel, factors: LoraFactors | None = None, *, draw: Draw = GREEDY, limits: Sequence[int] = (6, 9, 4, 7)
) -> list[Opening]:
    return [
        Opening(
            tokens=tuple(base.tokenizer(text)["input_ids"]),
            max_tokens=limit,
            end_token=end_of_turn(base.tokenizer),
            draw=draw,
            favoured=frozenset(base.tokenizer(" blood air")["input_ids"]),
            factors=factors,
        )
        for text, limit in zip(TEXTS, limits, strict=True)
    ]


@pytest.fixture
def decode(precise_passes: Passes) -> Decode:
    def decode(*groups: Sequence[Opening]) -> list[list[Continuation]]:
        return decode_all([Decoding(layers=precise_passes.layers, openings=openings) for openings in groups])

    return decode


def greedy_by_peft(base: BaseModel, factors: LoraFactors, openings: Sequence[Opening]) -> list[tuple[int, ...]]:
    config = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
    model = get_peft_model(base.model, config)
    assert isinstance(model, PeftModel)
    weights = {name.replace(".default", ""): weight for name, weight in model.named_parameters() if "lora_" in name}
    for name, tensor in factors.state().items():
        weights[name].data.copy_(tensor)
    model.eval()
    continuations = []
    for opening in openings:
        tokens: list[int] = []
        with torch.inference_mode():
            while len(tokens) < opening.max_tokens:
                token = int(model(torch.tensor([[*opening.tokens, *tokens]])).logits[0, -1].argmax())
                if token == opening.end_token:
                    break
                tokens.append(token)
        continuations.append(tuple(tokens))
    model.unload()
    return continuations


def test_each_row_is_decoded_with_its_own_adapter_as_peft_decodes_it(
    precise: BaseModel, students: Sequence[LoraFactors], decode: Decode
) -> None:
    groups = [openings_of(precise, factors) for factors in students]
    continuations = decode(*groups)
    for factors, openings, replies in zip(students, groups, continuations, strict=True):
        assert [reply.tokens for reply in replies] == greedy_by_peft(precise, factors, openings)
    assert continuations[0] != continuations[1]


@pytest.mark.parametrize("draw", [GREEDY, SAMPLED])
def test_a_reply_does_not_depend_on_the_other_rows_of_the_batch(
    precise: BaseModel, students: Sequence[LoraFactors], decode: Decode, draw: Draw
) -> None:
    groups = [openings_of(precise, factors, draw=draw) for factors in (None, *students)]
    for openings, replies in zip(groups, decode(*groups), strict=True):
        assert [decode([opening])[0][0] for opening in openings] == replies


def test_rows_are_in_the_order_of_their_adapters_first_openings_wherever_those_are_in_memory(
    precise: BaseModel, precise_passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [LoraFactors(precise.model, SPEC, seed=seed) for seed in range(4)]
    for number, factors in enumerate(adapters):
        factors.scaling = float(number)
    orders: list[list[float]] = []
    run = precise_passes.layers.run

    def recorded(inputs: PassInput) -> Tensor:
        orders.append([span.adapter.scaling for span in inputs.spans if span.adapter is not None])
        return run(inputs)

    monkeypatch.setattr(precise_passes.layers, "run", recorded)
    for order in itertools.permutations(range(4)):
        openings = [openings_of(precise, adapters[number], limits=(1, 1, 1, 1))[3] for number in order]
        decode_all([Decoding(layers=precise_passes.layers, openings=openings)])
        assert all(recorded_order == list(order) for recorded_order in orders)
        orders.clear()


def test_no_reply_is_longer_than_its_limit_and_the_others_are_complete(precise: BaseModel, decode: Decode) -> None:
    openings = openings_of(precise)
    (replies,) = decode(openings)
    for opening, reply in zip(openings, replies, strict=True):
        assert reply.is_complete or len(reply.tokens) == opening.max_tokens
        assert opening.end_token not in reply.tokens


def test_a_reply_ends_when_it_is_enough(precise: BaseModel, decode: Decode) -> None:
    openings = openings_of(precise)
    (replies,) = decode(openings)
    shorter = [replace(opening, is_enough=lambda tokens: len(tokens) == 2) for opening in openings]
    assert [reply.tokens for reply in decode(shorter)[0]] == [reply.tokens[:2] for reply in replies]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_says_no_run_twice_where_its_opening_forbids_it(
    precise: BaseModel, decode: Decode, temperature: float
) -> None:
    draw = Draw(temperature=temperature, favour=8.0)
    openings = openings_of(precise, draw=draw, limits=(24, 24, 24, 24))
    tokens = run_tokens_of(precise.tokenizer)
    (circling,) = decode(openings)
    (others,) = decode([replace(opening, unrepeated_run=4, run_tokens=tokens) for opening in openings])
    assert any(blocked_in(reply.tokens, tokens) for reply in circling)
    assert not any(blocked_in(reply.tokens, tokens) for reply in others)


def blocked_in(reply: Sequence[int], tokens: RunTokens) -> int:
    """How many tokens of a reply complete a run of four that it has said."""
    history, count = RunHistory(4, tokens), 0
    for token in reply:
        count += token in history.blocked
        history.push(token)
    return count


def test_another_seed_samples_another_reply(precise: BaseModel, decode: Decode) -> None:
    draws = [Draw(temperature=1.0, top_p=1.0, seed=seed) for seed in (1, 2)]
    first, second = decode(*(openings_of(precise, draw=draw, limits=(9, 9, 9, 9)) for draw in draws))
    assert first != second


def test_a_shared_prefix_is_computed_once_unless_that_computes_more_tokens(base: BaseModel) -> None:
    def opening(*tokens: int, factors: LoraFactors | None = None) -> Opening:
        return Opening(tokens=tokens, max_tokens=1, end_token=0, draw=GREEDY, factors=factors)

    long = tuple(range(1, 41))
    alike = [opening(*long, place) for place in (50, 51, 52)]
    assert group_by_prefix(alike) == [(3, 40)]
    assert group_by_prefix([*alike, opening(*long[:2], 60, 61)]) == [(3, 40), (1, 3)]
    assert group_by_prefix([opening(1), opening(1, 2)]) == [(1, 0), (1, 1)]
    other = LoraFactors(base.model, SPEC, seed=0)
    assert group_by_prefix([alike[0], opening(*long, 50, factors=other)]) == [(1, 40), (1, 40)]
