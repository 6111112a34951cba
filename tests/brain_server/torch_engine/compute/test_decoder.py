"""The decoder against plain transformers: in any mix of rows, a row's logits are those of one pass over its tokens."""

import copy
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from brain_server.torch_engine.compute.decoder import Decoder, Segment
from mesh.errors import BaseModelUnavailable
from testing.models.mixed_steps import logits_of_rows
from testing.models.small_models import VOCABULARY, small_model

# Two orders of sums of a hundred fp32 products differ by about this, for logits of about 1.
ATOL = 1e-4
LENGTHS = (9, 23, 1, 14, 31)
# A configuration's arguments have different types.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
CONFIGS = {
    "a Llama with grouped queries": LlamaConfig(**SIZES),
    "with as many key heads as query heads": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "with one key head": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "with heads that are not the hidden size": LlamaConfig(**SIZES, head_dim=32),
    "with its head tied to the embedding": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "with biases everywhere": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "with another epsilon": LlamaConfig(**SIZES, rms_norm_eps=0.1),
    "with Llama 3's positions": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "with YaRN's positions": LlamaConfig(**SIZES, rope_parameters=YARN),
    "with linearly scaled positions": LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "a Mistral": MistralConfig(**SIZES, head_dim=16, sliding_window=None),
    "a Qwen2, whose queries, keys and values have biases": Qwen2Config(**SIZES, tie_word_embeddings=True),
}


def sequences_of(lengths: tuple[int, ...], *, seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_mixed_steps_compute_what_one_pass_over_each_sequence_does(config: PreTrainedConfig) -> None:
    model = small_model(copy.deepcopy(config))
    sequences = sequences_of(LENGTHS)
    with torch.inference_mode():
        expected_rows = [model(torch.tensor([tokens])).logits[0] for tokens in sequences]
    decoder = Decoder(copy.deepcopy(model), rows=len(sequences), context_tokens=40)
    for seed in range(4):
        logits = logits_of_rows(decoder, sequences, seed=seed)
        for row_logits, expected_logits in zip(logits, expected_rows, strict=True):
            torch.testing.assert_close(row_logits, expected_logits, atol=ATOL, rtol=0)
        for row, tokens in enumerate(sequences):
            decoder.cache.wipe(row, len(tokens))
        assert not decoder.cache.tensor.any()


def test_rows_that_move_and_change_places_take_their_past_with_them() -> None:
    model = small_model(LlamaConfig(**SIZES))
    sequences = sequences_of((20, 20, 20))
    with torch.inference_mode():
        expected_rows = [model(torch.tensor([tokens])).logits[0] for tokens in sequences]
    decoder = Decoder(copy.deepcopy(model), rows=4, context_tokens=24)
    logits_of_rows(decoder, [tokens[:12] for tokens in sequences], seed=1)
    decoder.cache.swap(0, 2, 12)
    decoder.cache.move(1, 3, 12)
    decoder.cache.move(2, 1, 12)
    # What was in rows 0, 1, 2 is in rows 1, 3, 0.
    order = [2, 0]
    for position in range(12, 20):
        lane = [
            Segment(row=row, start=position, tokens=[sequences[number][position]]) for row, number in enumerate(order)
        ]
        prefill = [Segment(row=3, start=position, tokens=[sequences[1][position]])]
        logits_NV = decoder.step(lane, prefill, adapters=None, logits_of=range(3))
        for logits, number in zip(logits_NV, [*order, 1], strict=True):
            torch.testing.assert_close(logits, expected_rows[number][position], atol=ATOL, rtol=0)


def test_a_row_whose_numbers_are_not_finite_leaves_the_others_alone() -> None:
    model = small_model(LlamaConfig(**SIZES))
    sequences = sequences_of((6, 9, 12))
    with torch.inference_mode():
        expected_rows = [model(torch.tensor([tokens])).logits[0] for tokens in sequences]
    decoder = Decoder(copy.deepcopy(model), rows=3, context_tokens=16)
    broken_row = 1

    class NanAdapter:
        """An adapter that writes NaN to the given rows."""

        def __init__(self, rows: list[int]) -> None:
            self._rows = rows

        def add(self, layer: int, group: str, x_NI: torch.Tensor, out_NO: torch.Tensor) -> None:
            out_NO[self._rows] = torch.nan

    for position in range(max(map(len, sequences))):
        active_rows = [row for row, tokens in enumerate(sequences) if position < len(tokens)]
        segments = [Segment(row=row, start=position, tokens=[sequences[row][position]]) for row in active_rows]
        lane = [segment for index, segment in enumerate(segments) if segment.row == index]
        adapter = NanAdapter([active_rows.index(broken_row)] if broken_row in active_rows else [])
        logits_NV = decoder.step(lane, segments[len(lane) :], adapters=adapter, logits_of=range(len(segments)))
        for row, logits in zip(active_rows, logits_NV, strict=True):
            assert logits.isnan().all() == (row == broken_row)
            if row != broken_row:
                torch.testing.assert_close(logits, expected_rows[row][position], atol=ATOL, rtol=0)


def test_only_the_requested_logits_are_computed() -> None:
    decoder = Decoder(small_model(LlamaConfig(**SIZES)), rows=2, context_tokens=8)
    segments = [Segment(row=0, start=0, tokens=[1, 2, 3]), Segment(row=1, start=0, tokens=[4, 5])]
    assert decoder.step([], segments, adapters=None, logits_of=[]).shape == (0, VOCABULARY)
    later_segments = [Segment(row=0, start=3, tokens=[6]), Segment(row=1, start=2, tokens=[7])]
    assert decoder.step(later_segments, [], adapters=None, logits_of=[1]).shape == (1, VOCABULARY)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPTNeoXConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2), "gpt_neox"),
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "dynamic"),
    ],
)
def test_an_unsupported_architecture_is_refused_with_advice_to_serve_it(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(BaseModelUnavailable, match=f"{reason}.*; try ENGINE=vllm"):
        Decoder(small_model(config), rows=1, context_tokens=8)
