"""Decoding in batches: each row is what it would be alone, and what transformers and PEFT make of the same prompt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from cloning_server.compute.batch_decoding import Continuation, Decoding, Draw, Opening, decode_all, gather_alike
from cloning_server.compute.layers import Layers
from cloning_server.compute.lora_factors import LoraFactors
from mesh.lm.base import BaseModel, load_base
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.chat import end_of_turn
from mesh.lm.lora import LoraSpec

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
def precise(cache_dir: Path) -> BaseModel:
    return load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def students(precise: BaseModel) -> list[LoraFactors]:
    """Adapters whose factors are all at work."""
    made = [LoraFactors(precise.model, SPEC, seed=seed) for seed in (1, 2)]
    for seed, factors in enumerate(made):
        factors.vector.data += 0.03 * torch.randn(factors.vector.shape, generator=torch.Generator().manual_seed(seed))
    return made


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


def decode(base: BaseModel, *some: Sequence[Opening]) -> list[list[Continuation]]:
    layers = Layers(base.model)
    return decode_all([Decoding(layers=layers, openings=openings) for openings in some])


def greedy_by_peft(base: BaseModel, factors: LoraFactors, openings: Sequence[Opening]) -> list[tuple[int, ...]]:
    config = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
    model = get_peft_model(base.model, config)
    assert isinstance(model, PeftModel)
    weights = {name.replace(".default", ""): one for name, one in model.named_parameters() if "lora_" in name}
    for name, tensor in factors.state().items():
        weights[name].data.copy_(tensor)
    model.eval()
    found = []
    for one in openings:
        tokens: list[int] = []
        with torch.inference_mode():
            while len(tokens) < one.max_tokens:
                token = int(model(torch.tensor([[*one.tokens, *tokens]])).logits[0, -1].argmax())
                if token == one.end_token:
                    break
                tokens.append(token)
        found.append(tuple(tokens))
    model.unload()
    return found


def test_each_row_is_decoded_with_its_own_adapter_as_peft_decodes_it(
    precise: BaseModel, students: Sequence[LoraFactors]
) -> None:
    asked = [openings_of(precise, factors) for factors in students]
    found = decode(precise, *asked)
    for factors, openings, said in zip(students, asked, found, strict=True):
        assert [one.tokens for one in said] == greedy_by_peft(precise, factors, openings)
    assert found[0] != found[1]


@pytest.mark.parametrize("draw", [GREEDY, SAMPLED])
def test_a_reply_is_the_same_whoever_is_decoded_beside_it(
    precise: BaseModel, students: Sequence[LoraFactors], draw: Draw
) -> None:
    asked = [openings_of(precise, factors, draw=draw) for factors in (None, *students)]
    together = decode(precise, *asked)
    for openings, said in zip(asked, together, strict=True):
        assert [decode(precise, [one])[0][0] for one in openings] == said


def test_no_reply_is_longer_than_its_limit_and_each_tells_whether_it_ended(precise: BaseModel) -> None:
    openings = openings_of(precise)
    (said,) = decode(precise, openings)
    for opening, one in zip(openings, said, strict=True):
        assert one.ended or len(one.tokens) == opening.max_tokens
        assert opening.end_token not in one.tokens


def test_a_reply_ends_when_it_is_enough(precise: BaseModel) -> None:
    whole = openings_of(precise)
    (said,) = decode(precise, whole)
    ended = [replace(one, is_enough=lambda tokens: len(tokens) == 2) for one in whole]
    assert [one.tokens for one in decode(precise, ended)[0]] == [one.tokens[:2] for one in said]


def test_another_seed_draws_another_reply(precise: BaseModel) -> None:
    draws = [Draw(temperature=1.0, top_p=1.0, seed=seed) for seed in (1, 2)]
    first, second = decode(precise, *(openings_of(precise, draw=draw, limits=(9, 9, 9, 9)) for draw in draws))
    assert first != second


def test_what_prompts_begin_with_is_read_once_unless_that_reads_more(base: BaseModel) -> None:
    def opening(*tokens: int, factors: LoraFactors | None = None) -> Opening:
        return Opening(tokens=tokens, max_tokens=1, end_token=0, draw=GREEDY, factors=factors)

    long = tuple(range(1, 41))
    alike = [opening(*long, place) for place in (50, 51, 52)]
    assert gather_alike(alike) == [(3, 40)]
    assert gather_alike([*alike, opening(*long[:2], 60, 61)]) == [(3, 40), (1, 3)]
    assert gather_alike([opening(1), opening(1, 2)]) == [(1, 0), (1, 1)]
    other = LoraFactors(base.model, SPEC, seed=0)
    assert gather_alike([alike[0], opening(*long, 50, factors=other)]) == [(1, 40), (1, 40)]
