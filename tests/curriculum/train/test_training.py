"""The training of a role: gradients through the prompt, and a training that was cut off goes on as if it was not."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.passes import Passes
from curriculum.train import training
from curriculum.train.objectives import LabelObjective
from curriculum.train.training import RoleExample, RoleSettings, StepReport, train
from mesh.lm.chat import Example
from mesh.main_brain.base import BaseModel, Quantization, load_base

SETTINGS = RoleSettings(rank=4, alpha=8, epochs=2, learning_rate=1e-2, batch=4)
LABEL_TOKENS = (40, 50, 60)
SMOOTHING = 0.05


class CutOffError(Exception):
    """Ends a training, as a power cut would."""


def graded_examples(count: int = 12) -> list[RoleExample]:
    """Made-up prompts of several lengths, each with one of the labels as its reply."""
    draws = random.Random(7)
    examples = []
    for place in range(count):
        prompt = tuple(draws.randrange(20, 40_000) for _ in range(6 + place % 5))
        label = place % len(LABEL_TOKENS)
        example = Example(tokens=(*prompt, LABEL_TOKENS[label]), reply_start=len(prompt))
        examples.append(RoleExample(example=example, label=label))
    return examples


def train_on(
    base: BaseModel,
    *,
    checkpoint: Path | None = None,
    origin: str = "base",
    watch: Callable[[StepReport], None] = lambda _report: None,
) -> Tensor:
    passes = Passes(base.model)
    factors = LoraFactors(base.model, SETTINGS.lora, seed=SETTINGS.seed)
    objective = LabelObjective(passes.layers.head_VH, LABEL_TOKENS, smoothing=SMOOTHING)
    train(passes, factors, graded_examples(), objective, SETTINGS, origin=origin, checkpoint=checkpoint, watch=watch)
    return factors.vector.detach().clone()


def cut_off_at(step: int) -> Callable[[StepReport], None]:
    def watch(report: StepReport) -> None:
        if report.step == step:
            raise CutOffError

    return watch


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(training, "_CHECKPOINT_STEPS", 2)
    return tmp_path / ".grader.checkpoint"


def test_a_training_that_was_cut_off_ends_with_the_bytes_of_one_that_was_not(
    small_base: BaseModel, checkpoint: Path
) -> None:
    whole = train_on(small_base)
    with pytest.raises(CutOffError):
        train_on(small_base, checkpoint=checkpoint, watch=cut_off_at(4))

    reports: list[StepReport] = []
    resumed = train_on(small_base, checkpoint=checkpoint, watch=reports.append)

    # Step 3 was lost with the step that was cut off.
    assert [report.step for report in reports] == [3, 4, 5, 6]
    assert torch.equal(resumed, whole)


def test_the_checkpoint_of_another_training_is_not_used(small_base: BaseModel, checkpoint: Path) -> None:
    train_on(small_base, checkpoint=checkpoint, origin="another base")
    reports: list[StepReport] = []

    train_on(small_base, checkpoint=checkpoint, watch=reports.append)

    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"damage", b"PK\x03\x04damage"])
def test_a_damaged_checkpoint_is_not_used(small_base: BaseModel, checkpoint: Path, content: bytes) -> None:
    checkpoint.write_bytes(content)
    reports: list[StepReport] = []

    train_on(small_base, checkpoint=checkpoint, watch=reports.append)

    assert len(reports) == 6


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_gradients_reach_the_whole_prompt_as_peft_has_them(small_folder: Path, quantization: Quantization) -> None:
    def load() -> BaseModel:
        return load_base(
            str(small_folder), cache_dir=small_folder.parent, device="cpu", dtype="float32", quantization=quantization
        )

    base, examples = load(), graded_examples(3)
    passes = Passes(base.model)
    factors = LoraFactors(base.model, SETTINGS.lora, seed=1)
    # A new adapter's second factor is zero, and so would be the gradient of its first.
    factors.vector.data += 0.02 * torch.randn(factors.vector.shape, generator=torch.Generator().manual_seed(1))
    state = {name: factor.clone() for name, factor in factors.state().items()}
    objective = LabelObjective(passes.layers.head_VH, LABEL_TOKENS, smoothing=SMOOTHING)

    loss = training._add_gradients(passes, factors, examples, objective)

    expected_loss, expected = plain_gradients(load(), state, examples)
    assert factors.vector.grad is not None
    factors.vector.data.copy_(factors.vector.grad)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    for name, gradient in factors.state().items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-3, atol=1e-6)


def plain_gradients(
    base: BaseModel, state: dict[str, Tensor], examples: list[RoleExample]
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by PEFT's names, as transformers, PEFT and autograd have them."""
    lora = SETTINGS.lora
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))
    model = get_peft_model(base.model, config)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In eval mode it may repack its weights for a product that has no gradient.
            module.train()
    weights = {
        name.replace(".default", ""): weight for name, weight in model.named_parameters() if weight.requires_grad
    }
    for name, factor in state.items():
        weights[name].data.copy_(factor)
    total = torch.zeros(())
    for member in examples:
        prompt = torch.tensor([member.example.tokens[:-1]])
        logits_L = model(input_ids=prompt).logits[0, -1, list(LABEL_TOKENS)]
        label = torch.tensor(member.label)
        total = total + functional.cross_entropy(logits_L, label, label_smoothing=SMOOTHING) / len(examples)
    total.backward()
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    return float(total.detach()), gradients
