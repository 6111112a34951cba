"""What adapters add in one step of many rows, against PEFT with each adapter alone; and which adapters are refused."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from brain_server.torch_engine.compute import slot_tables
from brain_server.torch_engine.compute.decoder import Decoder
from brain_server.torch_engine.compute.row_products import EmbeddingBagProducts, MatmulProducts
from brain_server.torch_engine.compute.slot_tables import SlotTables
from mesh.errors import AdapterIncompatible
from mesh.lm.llama_shape import GROUPS, Shape
from mesh.lm.lora import LoraSpec
from testing.models.mixed_steps import logits_of_rows
from testing.models.small_models import VOCABULARY, small_model

if TYPE_CHECKING:
    from peft import PeftModel

ATOL = 1e-4
ALL_MODULES = tuple(module for group in GROUPS.values() for module in group)
SPEC = LoraSpec(rank=8, alpha=16, target_modules=ALL_MODULES)
ROWS = 6


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    return small_model(config)


@pytest.fixture
def decoder(model: PreTrainedModel) -> Decoder:
    return Decoder(copy.deepcopy(model), rows=ROWS, context_tokens=32)


def tables_for(decoder: Decoder, *, spec: LoraSpec = SPEC, dtype: torch.dtype = torch.float32) -> SlotTables:
    return SlotTables(decoder.shape, spec=spec, slots=4, dtype=dtype, device=torch.device("cpu"))


def with_adapter(model: PreTrainedModel, spec: LoraSpec, *, seed: int) -> "PeftModel":
    """A copy of the model with an adapter of random numbers, by PEFT."""
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=list(spec.target_modules))
    peft = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5 / 2)
    return peft.eval()


# Of the highest rank and of lower ones, for all modules and for some.
SPECS = (
    SPEC,
    LoraSpec(rank=3, alpha=7, target_modules=ALL_MODULES),
    LoraSpec(rank=8, alpha=8, target_modules=("q_proj", "v_proj")),
    LoraSpec(rank=1, alpha=4, target_modules=("k_proj", "up_proj", "o_proj")),
)
# The lane is often all adapters (rows 0 to 1), or has the base model's rows in between.
SLOTS = (2, 0, None, 1, 3, 0)


@pytest.mark.parametrize("products", [EmbeddingBagProducts, MatmulProducts])
def test_every_row_decodes_with_its_own_adapter_or_none(
    model: PreTrainedModel,
    decoder: Decoder,
    products: type[EmbeddingBagProducts | MatmulProducts],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without this, a step on this device would always use the same class.
    monkeypatch.setattr(slot_tables, "EmbeddingBagProducts", products)
    tables = tables_for(decoder)
    peft_models = [with_adapter(model, spec, seed=seed) for seed, spec in enumerate(SPECS)]
    for slot, (peft, spec) in enumerate(zip(peft_models, SPECS, strict=True)):
        # Another adapter was in the slot before.
        tables.put(slot, tables.pack(state_of(with_adapter(model, SPEC, seed=100 + slot)), scaling=3.0))
        tables.put(slot, tables.pack(state_of(peft), scaling=spec.scaling))
    sequences = torch.randint(VOCABULARY, (ROWS, 25), generator=torch.Generator().manual_seed(5)).tolist()
    with torch.inference_mode():
        expected_rows = [
            (model if slot is None else peft_models[slot])(torch.tensor([tokens])).logits[0]
            for slot, tokens in zip(SLOTS, sequences, strict=True)
        ]
        plain = model(torch.tensor(sequences)).logits
    for seed in range(4):
        logits = logits_of_rows(decoder, sequences, seed=seed, tables=tables, slots=SLOTS)
        for row, row_slot in enumerate(SLOTS):
            torch.testing.assert_close(logits[row], expected_rows[row], atol=ATOL, rtol=0)
            # The adapters change the logits far beyond the tolerance.
            assert row_slot is None or (logits[row] - plain[row]).abs().mean() > 100 * ATOL


def test_a_wiped_slot_adds_nothing(model: PreTrainedModel, decoder: Decoder) -> None:
    tables = tables_for(decoder)
    for slot in (0, 1):
        tables.put(slot, tables.pack(state_of(with_adapter(model, SPEC, seed=slot)), scaling=2.0))
    tables.wipe(0)
    sequences = [[1, 2, 3, 4, 5]] * 2
    wiped_logits, adapter_logits = logits_of_rows(decoder, sequences, seed=1, tables=tables, slots=(0, 1))
    with torch.inference_mode():
        base_logits = model(torch.tensor(sequences[:1])).logits[0]
    torch.testing.assert_close(wiped_logits, base_logits, atol=ATOL, rtol=0)
    assert (adapter_logits - base_logits).abs().max() > 100 * ATOL


def test_a_step_without_adapters_computes_none(decoder: Decoder) -> None:
    assert tables_for(decoder).step([None, None], []) is None


@pytest.mark.parametrize("products", [EmbeddingBagProducts, MatmulProducts])
def test_a_row_is_multiplied_by_the_matrices_of_its_slot(products: type[EmbeddingBagProducts | MatmulProducts]) -> None:
    generator = torch.Generator().manual_seed(1)
    table_STIO = torch.randn(5, 2, 7, 3, generator=generator)
    slots_B = torch.tensor([4, 0, 4, 2])
    x_BTI = torch.randn(4, 2, 7, generator=generator)
    expected_BTO = torch.einsum("bti,btio->bto", x_BTI, table_STIO[slots_B])
    torch.testing.assert_close(products(slots_B)(x_BTI, table_STIO), expected_BTO)


class TestMisfits:
    @pytest.fixture
    def state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return state_of(with_adapter(model, LoraSpec(rank=4, target_modules=("q_proj", "v_proj")), seed=1))

    Change = Callable[[dict[str, Tensor]], None]

    @staticmethod
    def _lacks_a_factor(state: dict[str, Tensor]) -> None:
        del state[first_layers_name(state, "q_proj.lora_A")]

    @staticmethod
    def _lacks_both_in_one_layer(state: dict[str, Tensor]) -> None:
        del state[first_layers_name(state, "q_proj.lora_A")]
        del state[first_layers_name(state, "q_proj.lora_B")]

    @staticmethod
    def _has_a_layer_too_many(state: dict[str, Tensor]) -> None:
        name = first_layers_name(state, "q_proj.lora_A")
        state[name.replace("layers.0", "layers.7")] = state[name]

    @staticmethod
    def _has_a_module_without_room(state: dict[str, Tensor]) -> None:
        name = first_layers_name(state, "q_proj.lora_A")
        state[name.replace("self_attn.q_proj", "mlp.experts")] = state[name]

    @staticmethod
    def _has_a_bias(state: dict[str, Tensor]) -> None:
        state[first_layers_name(state, "q_proj.lora_A").replace("lora_A.weight", "bias")] = torch.zeros(1)

    @staticmethod
    def _is_wider(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if "q_proj.lora_A" in name]:
            state[name] = torch.zeros(4, 49)

    @staticmethod
    def _has_factors_of_two_ranks(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if "q_proj.lora_A" in name]:
            state[name] = state[name][:2]

    @staticmethod
    def _has_another_rank_in_one_layer(state: dict[str, Tensor]) -> None:
        state[first_layers_name(state, "q_proj.lora_A")] = torch.zeros(2, 48)

    @staticmethod
    def _has_a_factor_of_one_axis(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if "q_proj.lora_A" in name]:
            state[name] = state[name].flatten()

    @pytest.mark.parametrize(
        "change",
        [
            _lacks_a_factor, _lacks_both_in_one_layer, _has_a_layer_too_many, _has_a_module_without_room, _has_a_bias,
            _is_wider, _has_factors_of_two_ranks, _has_another_rank_in_one_layer, _has_a_factor_of_one_axis,
        ],
    )  # fmt: skip
    def test_an_adapter_that_does_not_fit_is_refused(
        self, decoder: Decoder, state: dict[str, Tensor], change: Change
    ) -> None:
        tables = tables_for(decoder)
        tables.pack(state, scaling=1.0)
        change(state)
        with pytest.raises(AdapterIncompatible):
            tables.pack(state, scaling=1.0)

    def test_a_higher_rank_than_the_slots_is_refused(self, model: PreTrainedModel, decoder: Decoder) -> None:
        state = state_of(with_adapter(model, LoraSpec(rank=9, target_modules=ALL_MODULES), seed=1))
        with pytest.raises(AdapterIncompatible, match="rank 8"):
            tables_for(decoder).pack(state, scaling=1.0)

    def test_a_module_that_the_slots_have_no_room_for_is_refused_by_name(
        self, decoder: Decoder, model: PreTrainedModel
    ) -> None:
        tables = tables_for(decoder, spec=LoraSpec(rank=8, target_modules=("q_proj", "v_proj")))
        state = state_of(with_adapter(model, LoraSpec(rank=4, target_modules=("q_proj", "down_proj")), seed=1))
        with pytest.raises(AdapterIncompatible, match="down_proj"):
            tables.pack(state, scaling=1.0)

    @pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
    def test_numbers_beyond_the_decoders_precision_are_refused(
        self, decoder: Decoder, state: dict[str, Tensor], factor: str
    ) -> None:
        tables = tables_for(decoder, dtype=torch.float16)
        tables.pack(state, scaling=1.0)
        # 65,504 is fp16's largest number; the scaling of 2 carries one factor beyond it, its own size the other.
        state[first_layers_name(state, f"q_proj.{factor}")][0, 0] = 70_000.0 if factor == "lora_A" else 40_000.0
        tables_for(decoder).pack(state, scaling=2.0)
        with pytest.raises(AdapterIncompatible, match="too large"):
            tables.pack(state, scaling=2.0)

    def test_slots_for_modules_that_no_decoder_has_are_refused(self, model: PreTrainedModel) -> None:
        spec = LoraSpec(target_modules=("q_proj", "experts"))
        with pytest.raises(AdapterIncompatible, match="experts"):
            SlotTables(Shape.of(model), spec=spec, slots=1, dtype=torch.float32, device=torch.device("cpu"))


def state_of(peft: "PeftModel") -> dict[str, Tensor]:
    """The adapter's numbers as PEFT would save them."""
    state: dict[str, Tensor] = get_peft_model_state_dict(peft)
    return {name: weight.detach().clone() for name, weight in state.items()}


def first_layers_name(state: dict[str, Tensor], part: str) -> str:
    """The first layer's name among those with the part."""
    return min(name for name in state if part in name)
