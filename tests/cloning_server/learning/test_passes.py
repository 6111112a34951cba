"""Passes that train, compared with PEFT that has the prompt in its cache: alone, in a class, on quantised bases."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from cloning_server.compute import linear
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.optimizer import MAX_PASS_TOKENS, TrainingStep, compute_gradients, heldout_loss
from cloning_server.learning.packing import pack, packs_of
from cloning_server.learning.passes import DECIDING_WEIGHT, Passes
from mesh.errors import BaseModelUnavailable
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.chat import Example
from mesh.lm.llama_shape import GROUPS
from mesh.lm.lora import LoraSpec
from mesh.main_brain.base import BaseModel, DtypeName, Quantization, load_base
from testing.models.small_models import small_model

SPEC = LoraSpec()


def examples_of(seed: int, *, shared: int = 20, lengths: Sequence[int] = (30, 44, 37)) -> list[Example]:
    """Made-up conversations that begin alike and have replies of several lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(20, 40_000, (count,), generator=generator).tolist())

    head = draw(shared)
    return [
        Example(
            tokens=(*head, *draw(length)),
            reply_start=shared + length - 8 - place,
            # The first reply is one sentence.
            body_start=shared + length - 4 if place else None,
        )
        for place, length in enumerate(lengths)
    ]


def adapter_of(base: BaseModel, seed: int, *, spec: LoraSpec = SPEC) -> LoraFactors:
    """An adapter without zeros, as after training."""
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

    In the gradient, the tokens that decide what a reply does count `DECIDING_WEIGHT` times.

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
    weights = {
        name.replace(".default", ""): weight for name, weight in model.named_parameters() if weight.requires_grad
    }
    for name, tensor in factors.state().items():
        weights[name].data.copy_(tensor)
    nats = []
    for example in examples:
        prompt, rest = example.tokens[: example.reply_start - 1], example.tokens[example.reply_start - 1 : -1]
        hooks = [
            layer.register_forward_hook(lambda _, __, out_TH: out_TH.detach()) for layer in base.model.model.layers
        ]
        cache = model(torch.tensor([prompt]), use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()
        logits_MV = model(torch.tensor([rest]), past_key_values=cache).logits[0].float()
        reply = torch.tensor(example.tokens[example.reply_start :])
        nats.append(functional.cross_entropy(logits_MV, reply, reduction="none"))
    loss = torch.cat(nats).mean()
    deciding = [
        nats_R[start - example.reply_start]
        for example, nats_R in zip(examples, nats, strict=True)
        for start in (example.reply_start, example.body_start)
        if start is not None
    ]
    torch.autograd.backward(loss + (DECIDING_WEIGHT - 1) * torch.stack(deciding).sum() / len(torch.cat(nats)))
    gradients = [weights[name].grad for name in factors.state()]
    gradient = torch.cat([part.flatten() for part in gradients if part is not None])
    model.unload()
    base.model.eval()
    return float(loss.detach()), gradient


@pytest.mark.parametrize("shared", [1, 20])
def test_loss_and_gradient_are_those_of_plain_peft_with_the_prompt_in_its_cache(
    precise: BaseModel, precise_passes: Passes, shared: int
) -> None:
    examples, factors = examples_of(1, shared=shared), adapter_of(precise, seed=2)
    loss = step_of(precise_passes, examples, factors)
    plain_loss, plain_gradient = plain_step(precise, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradient_of(factors), plain_gradient, rtol=1e-3, atol=1e-5)


def test_adapters_of_every_module_learn_what_plain_peft_learns(precise: BaseModel, precise_passes: Passes) -> None:
    spec = LoraSpec(target_modules=tuple(sorted(module for group in GROUPS.values() for module in group)))
    examples, factors = examples_of(11), adapter_of(precise, seed=12, spec=spec)
    loss = step_of(precise_passes, examples, factors)
    plain_loss, plain_gradient = plain_step(precise, factors, examples, spec=spec)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradient_of(factors), plain_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("repacking_cpu")
@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_it_learns_on_any_base_what_plain_peft_learns(cache_dir: Path, quantization: Quantization) -> None:
    base = load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="bfloat16", quantization=quantization)
    # So many that the rounding of single conversations evens out.
    examples = examples_of(3, lengths=(30, 44, 37) * 4)
    passes, factors = Passes(base.model), adapter_of(base, seed=4)
    loss = step_of(passes, examples, factors)
    plain_loss, plain_gradient = plain_step(base, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=0.02)
    assert heldout_loss(passes, [pack(examples, device=base.device)], factors) == pytest.approx(loss, rel=0.02)
    # 8-bit rounds the inputs of products too, differently in other batches.
    assert functional.cosine_similarity(gradient_of(factors), plain_gradient, dim=0) > 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_bytes", [linear.MAX_BLOCKED_BYTES, 0], ids=["the machine's layout", "plain matrices"])
def test_a_small_model_learns_in_either_precision_and_layout(
    small_base: BaseModel,
    small_folder: Path,
    dtype: DtypeName,
    max_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "MAX_BLOCKED_BYTES", max_bytes)
    base = load_base(str(small_folder), cache_dir=small_folder.parent, device="cpu", dtype=dtype)
    passes, examples, factors = Passes(base.model), examples_of(13), adapter_of(base, seed=14)
    loss = step_of(passes, examples, factors)
    plain_loss, plain_gradient = plain_step(small_base, factors, examples)
    assert loss == pytest.approx(plain_loss, rel=0.01)
    assert loss_of(passes, factors, examples) == pytest.approx(loss, rel=0.01)
    assert functional.cosine_similarity(gradient_of(factors), plain_gradient, dim=0) > (
        0.999_999 if dtype == "float32" else 0.99
    )


def test_a_class_learns_what_each_would_alone(precise: BaseModel, precise_passes: Passes) -> None:
    steps = [
        TrainingStep(
            passes=precise_passes,
            pack=pack(examples_of(seed, shared=10 + seed, lengths=lengths), device=precise.device),
            factors=adapter_of(precise, seed=seed),
        )
        for seed, lengths in enumerate([(25,), (40, 30), (31, 28, 45)])
    ]
    alone = [(*compute_gradients([step]), gradient_of(step.factors)) for step in steps]
    together = compute_gradients(steps)
    for step, loss, (own_loss, own_gradient) in zip(steps, together, alone, strict=True):
        assert loss == pytest.approx(own_loss, rel=1e-5)
        torch.testing.assert_close(gradient_of(step.factors), own_gradient, rtol=1e-3, atol=1e-5)


def test_the_loss_is_over_the_replys_tokens_alone_and_without_an_adapter_the_base_models(
    precise: BaseModel, precise_passes: Passes
) -> None:
    examples = examples_of(5)
    nats = []
    with torch.inference_mode():
        for example in examples:
            logits_TV = precise.model(torch.tensor([example.tokens])).logits[0, example.reply_start - 1 : -1]
            reply = torch.tensor(example.tokens[example.reply_start :])
            nats.append(functional.cross_entropy(logits_TV, reply, reduction="none"))
    packs, untrained = packs_of(examples, 2, device=precise.device), LoraFactors(precise.model, SPEC, seed=1)
    base_loss = heldout_loss(precise_passes, packs, None)
    assert base_loss == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)
    assert heldout_loss(precise_passes, packs, untrained) == base_loss


@pytest.mark.parametrize(("size", "sizes"), [(4, [4] * 5), (3, [3] * 6 + [2])])
def test_examples_are_dealt_so_that_every_pack_has_short_prompts_and_long_ones(size: int, sizes: list[int]) -> None:
    starts = range(30, 50)
    examples = [Example(tokens=tuple(range(start + 5)), reply_start=start) for start in reversed(starts)]
    dealt = [
        [packed.shared_tokens + length + 1 for length in packed.prompt_lengths]
        for packed in packs_of(examples, size, device=torch.device("cpu"))
    ]
    assert [len(members) for members in dealt] == sizes
    assert sorted(start for members in dealt for start in members) == list(starts)
    assert all(max(members) - min(members) >= len(starts) / 3 for members in dealt)


def test_shared_tokens_are_packed_once_and_each_example_has_the_tokens_that_predict_its_reply() -> None:
    examples = examples_of(6, shared=20, lengths=(30, 44))
    packed = pack(examples, device=torch.device("cpu"))
    replies = [example.tokens[example.reply_start :] for example in examples]
    predicting = [example.tokens[example.reply_start - 1 : -1] for example in examples]
    assert (packed.shared_tokens, packed.prompt_lengths) == (20, [example.reply_start - 1 - 20 for example in examples])
    assert packed.size == 20 + sum(len(example.tokens) - 1 - 20 for example in examples) < MAX_PASS_TOKENS
    assert packed.targets_M.tolist() == [token for reply in replies for token in reply]
    assert packed.replies_M.tolist() == [token for tokens in predicting for token in tokens]


def test_examples_with_the_same_prompt_keep_the_token_that_predicts(precise: BaseModel, precise_passes: Passes) -> None:
    (first,) = examples_of(7, lengths=(30,))
    second = Example(tokens=(*first.tokens[: first.reply_start], 7, 8), reply_start=first.reply_start)
    packed = pack([first, second], device=precise.device)
    assert (packed.shared_tokens, packed.prompt_lengths) == (first.reply_start - 1, [0, 0])
    factors = adapter_of(precise, seed=10)
    apart = loss_of(precise_passes, factors, [first], [second])
    assert loss_of(precise_passes, factors, [first, second]) == pytest.approx(apart, rel=1e-5)


def test_examples_that_share_no_prefix_are_computed_as_apart(precise: BaseModel, precise_passes: Passes) -> None:
    examples = [*examples_of(8, shared=1, lengths=(30,)), *examples_of(9, shared=1, lengths=(40,))]
    assert pack(examples, device=precise.device).shared_tokens == 0
    factors = adapter_of(precise, seed=10)
    apart = loss_of(precise_passes, factors, *([example] for example in examples))
    assert loss_of(precise_passes, factors, examples) == pytest.approx(apart, rel=1e-5)


def step_of(passes: Passes, examples: Sequence[Example], factors: LoraFactors) -> float:
    """Loss of one training step; the gradient is in the factors."""
    (loss,) = compute_gradients(
        [TrainingStep(passes=passes, pack=pack(examples, device=passes.device), factors=factors)]
    )
    return loss


def loss_of(passes: Passes, factors: LoraFactors, *groups: Sequence[Example]) -> float:
    return heldout_loss(passes, [pack(group, device=passes.device) for group in groups], factors)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPTNeoXConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2), "gpt_neox"),
        (
            LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            ),
            "dynamic",
        ),
    ],
)
def test_an_unsupported_architecture_is_refused_with_advice_to_train_on_another(
    config: PreTrainedConfig, reason: str
) -> None:
    with pytest.raises(BaseModelUnavailable, match=f"{reason}.*; train on another base model$") as refused:
        Passes(small_model(config))
    assert "ENGINE" not in str(refused.value)
