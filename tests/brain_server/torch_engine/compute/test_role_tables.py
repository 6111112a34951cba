"""Roles beside students' adapters in the same steps, against PEFT with each adapter alone."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from brain_server.torch_engine.compute.decoder import Decoder, Segment
from brain_server.torch_engine.compute.role_tables import RoleTables
from brain_server.torch_engine.compute.slot_tables import SlotTables, SlotUpdates
from mesh.errors import AdapterIncompatible
from mesh.lm.llama_shape import GROUPS, Shape
from mesh.lm.lora import LoraSpec
from mesh.main_brain.roles import RoleName
from testing.models.small_models import VOCABULARY, small_model

if TYPE_CHECKING:
    from peft import PeftModel

ATOL = 1e-4
ALL_MODULES = tuple(module for group in GROUPS.values() for module in group)
STUDENT = LoraSpec(rank=4, alpha=8, target_modules=("q_proj", "v_proj"))
# Roles may differ from the slots, and from each other, in rank and modules.
ROLES: dict[RoleName, LoraSpec] = {
    "grader": LoraSpec(rank=8, alpha=16, target_modules=ALL_MODULES),
    "guard": LoraSpec(rank=3, alpha=12, target_modules=("v_proj", "k_proj", "up_proj", "down_proj")),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    return small_model(config)


@pytest.fixture
def decoder(model: PreTrainedModel) -> Decoder:
    return Decoder(copy.deepcopy(model), rows=6, context_tokens=32)


def with_adapter(model: PreTrainedModel, spec: LoraSpec, *, seed: int) -> "PeftModel":
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.target_modules))
    peft = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5 / 2)
    return peft.eval()


def state_of(peft: "PeftModel") -> dict[str, Tensor]:
    return dict(get_peft_model_state_dict(peft))


def logits_by(model: "PreTrainedModel | PeftModel", tokens: Sequence[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([list(tokens)])).logits[0]
    return logits


def test_roles_students_and_the_base_model_read_beside_each_other_each_with_its_own_adapter(
    model: PreTrainedModel, decoder: Decoder
) -> None:
    student = with_adapter(model, STUDENT, seed=1)
    role_models = {role: with_adapter(model, spec, seed=seed) for seed, (role, spec) in enumerate(ROLES.items(), 2)}
    slots = SlotTables(decoder.shape, spec=STUDENT, slots=2, dtype=torch.float32, device=CPU)
    slots.put(1, slots.pack(state_of(student), scaling=STUDENT.scaling))
    roles = RoleTables(decoder.shape, dtype=torch.float32, device=CPU)
    for role, spec in ROLES.items():
        # In place of an earlier one.
        roles.pin(role, state_of(with_adapter(model, spec, seed=9)), spec=spec, scaling=1.0)
        roles.pin(role, state_of(role_models[role]), spec=spec, scaling=spec.scaling)
    texts = torch.randint(VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(5)).tolist()
    expected_rows = [logits_by(student, texts[0]), logits_by(model, texts[1])]
    expected_rows += [logits_by(role_models[role], text) for role, text in zip(ROLES, texts[2:4], strict=True)]
    expected_rows.append(logits_by(student, texts[4]))
    beginning = Segment(row=0, start=0, tokens=texts[0][:11])
    decoder.step([], [beginning], adapters=slots.step([], [(beginning, 1)]), logits_of=[])
    decoder.step([], [Segment(row=1, start=0, tokens=texts[1][:11])], adapters=None, logits_of=[])

    # The prompts of rows 2 to 4 are read in two steps, of 7 and of 5 tokens, the lane's tokens beside the second.
    for start, count, lane_rows in ((0, 7, 0), (7, 5, 2)):
        lane = [Segment(row=row, start=11, tokens=texts[row][11:]) for row in range(lane_rows)]
        prefill = [Segment(row=row, start=start, tokens=texts[row][start : start + count]) for row in (2, 3, 4)]
        student_updates = slots.step([1, None][:lane_rows], list(zip(prefill, [None, None, 1], strict=True)))
        ranges = [slice(lane_rows + place * count, lane_rows + (place + 1) * count) for place in range(2)]
        updates = roles.step(list(zip(ranges, ROLES, strict=True)), others=student_updates)
        token_count = lane_rows + 3 * count
        logits_NV = decoder.step(lane, prefill, adapters=updates, logits_of=range(token_count))
        for row in range(lane_rows):
            torch.testing.assert_close(logits_NV[row], expected_rows[row][-1], atol=ATOL, rtol=0)
        for row, logits in zip((2, 3, 4), logits_NV[lane_rows:].split(count), strict=True):
            torch.testing.assert_close(logits, expected_rows[row][start : start + count], atol=ATOL, rtol=0)
            assert (logits - logits_by(model, texts[row])[start : start + count]).abs().mean() > 100 * ATOL


def test_a_step_without_roles_has_the_students_updates_alone(model: PreTrainedModel, decoder: Decoder) -> None:
    slots = SlotTables(decoder.shape, spec=STUDENT, slots=2, dtype=torch.float32, device=CPU)
    slots.put(0, slots.pack(state_of(with_adapter(model, STUDENT, seed=1)), scaling=1.0))
    assert isinstance(slots.step([0, 0], []), SlotUpdates)
    assert slots.step([None, None], []) is None


def test_a_role_that_does_not_fit_the_model_is_refused(model: PreTrainedModel) -> None:
    spec = ROLES["grader"]
    state = state_of(with_adapter(model, spec, seed=1))
    roles = RoleTables(Shape.of(model), dtype=torch.float32, device=CPU)
    name = next(name for name in state if name.endswith("down_proj.lora_A.weight"))
    unfit_states = [
        {**state, name: torch.zeros(spec.rank, 7)},
        {other_name: weight for other_name, weight in state.items() if other_name != name},
        {**state, "base_model.model.model.layers.9.mlp.down_proj.lora_A.weight": torch.zeros(spec.rank, 96)},
    ]
    for unfit_state in unfit_states:
        with pytest.raises(AdapterIncompatible):
            roles.pin("grader", unfit_state, spec=spec, scaling=1.0)
    with pytest.raises(AdapterIncompatible, match="lacks"):
        roles.pin("grader", state, spec=LoraSpec(rank=8, target_modules=("embed_tokens",)), scaling=1.0)
    assert roles.nbytes == 0
