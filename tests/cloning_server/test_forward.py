"""The pass that trains: a plain PEFT step is its measure, alone, in a class, and on quantised bases."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional

from cloning_server.factors import Factors
from cloning_server.forward import Forward
from cloning_server.learning import MOST_TOKENS, Turn, heldout_loss, take_turns
from cloning_server.packing import pack, packs_of
from mesh.lm.base import BaseModel, Quantization, load_base
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.chat import Example
from mesh.lm.lora import LoraSpec

SPEC = LoraSpec()


def examples_of(seed: int, *, shared: int = 20, lengths: Sequence[int] = (30, 44, 37)) -> list[Example]:
    """Made-up conversations that begin alike and have replies of several lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(20, 40_000, (count,), generator=generator).tolist())

    head = draw(shared)
    return [
        Example(tokens=(*head, *draw(length)), reply_start=shared + length - 8 - place)
        for place, length in enumerate(lengths)
    ]


def trained(base: BaseModel, seed: int) -> Factors:
    """An adapter whose factors are all at work."""
    factors = Factors(base.model, SPEC, seed=seed)
    noise = torch.randn(factors.vector.shape, generator=torch.Generator().manual_seed(seed))
    factors.vector.data += 0.02 * noise
    return factors


def gradient_of(factors: Factors) -> Tensor:
    assert factors.vector.grad is not None
    gradient, factors.vector.grad = factors.vector.grad, None
    return gradient


def plain_step(base: BaseModel, factors: Factors, examples: Sequence[Example]) -> tuple[float, Tensor]:
    """Loss and gradient as a plain loop with PEFT has them, one example after another and without any padding."""
    config = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
    model = get_peft_model(base.model, config)
    assert isinstance(model, PeftModel)
    weights = {name.replace(".default", ""): one for name, one in model.named_parameters() if one.requires_grad}
    for name, tensor in factors.state().items():
        weights[name].data.copy_(tensor)
    nats = [
        functional.cross_entropy(
            model(torch.tensor([one.tokens])).logits[0, one.reply_start - 1 : -1].float(),
            torch.tensor(one.tokens[one.reply_start :]),
            reduction="none",
        )
        for one in examples
    ]
    loss = torch.cat(nats).mean()
    torch.autograd.backward(loss)
    gradients = [weights[name].grad for name in factors.state()]
    gradient = torch.cat([one.flatten() for one in gradients if one is not None])
    model.unload()
    return float(loss.detach()), gradient


@pytest.fixture(scope="module")
def precise(cache_dir: Path) -> BaseModel:
    return load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="float32")


@pytest.mark.parametrize("shared", [1, 20])
def test_loss_and_gradient_are_those_of_a_plain_peft_step(precise: BaseModel, shared: int) -> None:
    examples, factors = examples_of(1, shared=shared), trained(precise, seed=2)
    forward = Forward(precise.model)
    (loss,) = take_turns([Turn(forward=forward, pack=pack(examples, device=precise.device), factors=factors)])
    plain_loss, plain_gradient = plain_step(precise, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradient_of(factors), plain_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_it_learns_on_any_base_what_plain_peft_learns(cache_dir: Path, quantization: Quantization) -> None:
    base = load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="bfloat16", quantization=quantization)
    examples, factors = examples_of(3), trained(base, seed=4)
    (loss,) = take_turns([Turn(forward=Forward(base.model), pack=pack(examples, device=base.device), factors=factors)])
    plain_loss, plain_gradient = plain_step(base, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=0.02)
    # 8-bit rounds what is multiplied too, differently in rows of other company.
    assert functional.cosine_similarity(gradient_of(factors), plain_gradient, dim=0) > 0.95


def test_a_class_learns_what_each_would_alone(precise: BaseModel) -> None:
    forward = Forward(precise.model)
    turns = [
        Turn(
            forward=forward,
            pack=pack(examples_of(seed, shared=10 + seed, lengths=lengths), device=precise.device),
            factors=trained(precise, seed=seed),
        )
        for seed, lengths in enumerate([(25,), (40, 30), (31, 28, 45)])
    ]
    alone = [(*take_turns([turn]), gradient_of(turn.factors)) for turn in turns]
    together = take_turns(turns)
    for turn, loss, (own_loss, own_gradient) in zip(turns, together, alone, strict=True):
        assert loss == pytest.approx(own_loss, rel=1e-5)
        torch.testing.assert_close(gradient_of(turn.factors), own_gradient, rtol=1e-3, atol=1e-5)


def test_the_loss_is_over_the_replys_tokens_alone_and_without_an_adapter_the_base_models(precise: BaseModel) -> None:
    examples = examples_of(5)
    nats = []
    with torch.inference_mode():
        for one in examples:
            logits_TV = precise.model(torch.tensor([one.tokens])).logits[0, one.reply_start - 1 : -1]
            reply = torch.tensor(one.tokens[one.reply_start :])
            nats.append(functional.cross_entropy(logits_TV, reply, reduction="none"))
    packs = packs_of(examples, 2, device=precise.device)
    forward, fresh = Forward(precise.model), Factors(precise.model, SPEC, seed=1)
    assert heldout_loss(forward, packs, None) == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)
    assert heldout_loss(forward, packs, fresh) == heldout_loss(forward, packs, None)


def test_what_is_shared_is_computed_once_and_each_keeps_what_predicts_its_reply(base: BaseModel) -> None:
    examples = examples_of(6, shared=20, lengths=(30, 44))
    packed = pack(examples, device=base.device)
    assert (packed.shared, packed.rows, packed.width, packed.size) == (20, 2, 44, 20 + 2 * 44)
    assert packed.targets_M.tolist() == [token for one in examples for token in one.tokens[one.reply_start :]]
    tokens, predicting = packed.tokens_N.tolist(), packed.predicting_M.tolist()
    assert [tokens[place] for place in predicting] == [
        token for one in examples for token in one.tokens[one.reply_start - 1 : -1]
    ]
    assert packed.size < MOST_TOKENS


def test_examples_that_are_all_prompt_in_common_keep_the_token_that_predicts(base: BaseModel) -> None:
    one = examples_of(7, lengths=(30,))[0]
    other = Example(tokens=(*one.tokens[: one.reply_start], 7, 8), reply_start=one.reply_start)
    packed = pack([one, other], device=base.device)
    assert packed.shared == one.reply_start - 1
