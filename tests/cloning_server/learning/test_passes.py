"""The pass that trains: PEFT that has read the prompt is its measure, alone, in a class, and on quantised bases."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer

from cloning_server.compute import linear
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.optimizer import MOST_TOKENS, TrainingStep, compute_gradients, heldout_loss
from cloning_server.learning.packing import pack, packs_of
from cloning_server.learning.passes import Forward
from mesh.lm.base import BaseModel, DtypeName, Quantization, load_base
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.chat import Example
from mesh.lm.llama_shape import GROUPS
from mesh.lm.lora import LoraSpec
from mesh.lm.weights import fetch
from testing.models.small_models import write_small_llama

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


def trained(base: BaseModel, seed: int, *, spec: LoraSpec = SPEC) -> LoraFactors:
    """An adapter whose factors are all at work."""
    factors = LoraFactors(base.model, spec, seed=seed)
    noise = torch.randn(factors.vector.shape, generator=torch.Generator().manual_seed(seed))
    factors.vector.data += 0.02 * noise
    return factors


def gradient_of(factors: LoraFactors) -> Tensor:
    assert factors.vector.grad is not None
    gradient, factors.vector.grad = factors.vector.grad, None
    return gradient


def plain_step(
    base: BaseModel, factors: LoraFactors, examples: Sequence[Example], *, spec: LoraSpec = SPEC
) -> tuple[float, Tensor]:
    """Loss and gradient as transformers and PEFT have them, one example after another and without any padding.

    The prompt but for its last token is in the cache already, as where a reply is generated, and no gradient goes
    through it from one layer to the one below.
    """
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.target_modules))
    model = get_peft_model(base.model, config)
    assert isinstance(model, PeftModel)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In eval mode it may repack its weights for a product that has no gradient.
            module.train()
    weights = {name.replace(".default", ""): one for name, one in model.named_parameters() if one.requires_grad}
    for name, tensor in factors.state().items():
        weights[name].data.copy_(tensor)
    nats = []
    for one in examples:
        prompt, rest = one.tokens[: one.reply_start - 1], one.tokens[one.reply_start - 1 : -1]
        hooks = [
            layer.register_forward_hook(lambda _, __, out_TH: out_TH.detach()) for layer in base.model.model.layers
        ]
        cache = model(torch.tensor([prompt]), use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()
        logits_MV = model(torch.tensor([rest]), past_key_values=cache).logits[0].float()
        reply = torch.tensor(one.tokens[one.reply_start :])
        nats.append(functional.cross_entropy(logits_MV, reply, reduction="none"))
    loss = torch.cat(nats).mean()
    torch.autograd.backward(loss)
    gradients = [weights[name].grad for name in factors.state()]
    gradient = torch.cat([one.flatten() for one in gradients if one is not None])
    model.unload()
    base.model.eval()
    return float(loss.detach()), gradient


@pytest.fixture(scope="module")
def precise(cache_dir: Path) -> BaseModel:
    return load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="float32")


@pytest.mark.parametrize("shared", [1, 20])
def test_loss_and_gradient_are_those_of_plain_peft_that_has_read_the_prompt(precise: BaseModel, shared: int) -> None:
    examples, factors = examples_of(1, shared=shared), trained(precise, seed=2)
    forward = Forward(precise.model)
    (loss,) = compute_gradients(
        [TrainingStep(forward=forward, pack=pack(examples, device=precise.device), factors=factors)]
    )
    plain_loss, plain_gradient = plain_step(precise, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradient_of(factors), plain_gradient, rtol=1e-3, atol=1e-5)


def test_adapters_of_every_module_learn_what_plain_peft_learns(precise: BaseModel) -> None:
    spec = LoraSpec(target_modules=tuple(sorted(module for group in GROUPS.values() for module in group)))
    examples, factors = examples_of(11), trained(precise, seed=12, spec=spec)
    (loss,) = compute_gradients(
        [TrainingStep(forward=Forward(precise.model), pack=pack(examples, device=precise.device), factors=factors)]
    )
    plain_loss, plain_gradient = plain_step(precise, factors, examples, spec=spec)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradient_of(factors), plain_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("repacking_cpu")
@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_it_learns_on_any_base_what_plain_peft_learns(cache_dir: Path, quantization: Quantization) -> None:
    base = load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="bfloat16", quantization=quantization)
    examples, factors = examples_of(3), trained(base, seed=4)
    (loss,) = compute_gradients(
        [TrainingStep(forward=Forward(base.model), pack=pack(examples, device=base.device), factors=factors)]
    )
    plain_loss, plain_gradient = plain_step(base, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=0.02)
    measured = heldout_loss(Forward(base.model), [pack(examples, device=base.device)], factors)
    assert measured == pytest.approx(loss, rel=0.02)
    # 8-bit rounds what is multiplied too, differently in rows of other company.
    assert functional.cosine_similarity(gradient_of(factors), plain_gradient, dim=0) > 0.95


@pytest.fixture(scope="module")
def small_llama(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base model that computes next to nothing."""
    tokenizer = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, cache_dir).path)
    return write_small_llama(tmp_path_factory.mktemp("small") / "small-llama", tokenizer)


@pytest.mark.parametrize(("dtype", "alike"), [("float32", 0.999_999), ("bfloat16", 0.99)])
@pytest.mark.parametrize("most_bytes", [linear.MOST_BYTES, 0], ids=["the machine's layout", "plain matrices"])
def test_a_small_model_learns_in_either_precision_and_layout(
    small_llama: Path, dtype: DtypeName, alike: float, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "MOST_BYTES", most_bytes)
    base = load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype=dtype)
    reference = load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")
    examples, factors = examples_of(13), trained(base, seed=14)
    packed = pack(examples, device=base.device)
    (loss,) = compute_gradients([TrainingStep(forward=Forward(base.model), pack=packed, factors=factors)])
    plain_loss, plain_gradient = plain_step(reference, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=0.01)
    assert heldout_loss(Forward(base.model), [packed], factors) == pytest.approx(loss, rel=0.01)
    assert functional.cosine_similarity(gradient_of(factors), plain_gradient, dim=0) > alike


def test_a_class_learns_what_each_would_alone(precise: BaseModel) -> None:
    forward = Forward(precise.model)
    turns = [
        TrainingStep(
            forward=forward,
            pack=pack(examples_of(seed, shared=10 + seed, lengths=lengths), device=precise.device),
            factors=trained(precise, seed=seed),
        )
        for seed, lengths in enumerate([(25,), (40, 30), (31, 28, 45)])
    ]
    alone = [(*compute_gradients([turn]), gradient_of(turn.factors)) for turn in turns]
    together = compute_gradients(turns)
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
    forward, fresh = Forward(precise.model), LoraFactors(precise.model, SPEC, seed=1)
    assert heldout_loss(forward, packs, None) == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)
    assert heldout_loss(forward, packs, fresh) == heldout_loss(forward, packs, None)


def test_what_is_shared_is_computed_once_and_each_keeps_what_predicts_its_reply(base: BaseModel) -> None:
    examples = examples_of(6, shared=20, lengths=(30, 44))
    packed = pack(examples, device=base.device)
    replies = [one.tokens[one.reply_start :] for one in examples]
    assert (packed.shared, packed.prompt_lengths) == (20, [one.reply_start - 1 - 20 for one in examples])
    assert packed.size == 20 + sum(len(one.tokens) - 1 - 20 for one in examples) < MOST_TOKENS
    assert packed.targets_M.tolist() == [token for reply in replies for token in reply]
    assert packed.replies_M.tolist() == [token for one in examples for token in one.tokens[one.reply_start - 1 : -1]]


def test_examples_that_are_all_prompt_in_common_keep_the_token_that_predicts(precise: BaseModel) -> None:
    one = examples_of(7, lengths=(30,))[0]
    other = Example(tokens=(*one.tokens[: one.reply_start], 7, 8), reply_start=one.reply_start)
    packed = pack([one, other], device=precise.device)
    assert (packed.shared, packed.prompt_lengths) == (one.reply_start - 1, [0, 0])
    assert loss_of(precise, [one, other]) == pytest.approx(loss_of(precise, [one], [other]), rel=1e-5)


def test_examples_that_share_no_beginning_are_read_all_the_same(precise: BaseModel) -> None:
    examples = [*examples_of(8, shared=1, lengths=(30,)), *examples_of(9, shared=1, lengths=(40,))]
    assert pack(examples, device=precise.device).shared == 0
    assert loss_of(precise, examples) == pytest.approx(loss_of(precise, *([one] for one in examples)), rel=1e-5)


def loss_of(base: BaseModel, *groups: Sequence[Example]) -> float:
    packs = [pack(group, device=base.device) for group in groups]
    return heldout_loss(Forward(base.model), packs, trained(base, seed=10))
