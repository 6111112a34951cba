"""Picking tokens, turning them into text, and keeping them to a schema; none of it needs the model."""

import json
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from brain_server.decoding import NotFinite, Sampler, TextStream
from brain_server.grammar import Constraint, Grammars

VOCABULARY = 49_152
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "feedback": {"type": "string", "maxLength": 120},
            "strengths": {
                "type": "array",
                "items": {"type": "string", "minLength": 3},
                "minItems": 1,
                "maxItems": 3,
            },
            "score": {"type": "integer"},
            "level": {"enum": ["excellent", "good"]},
        },
        "required": ["feedback", "strengths", "score", "level"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    return Grammars(tokenizer, vocabulary=VOCABULARY, stop_tokens=frozenset({tokenizer.eos_token_id}))


class TestSampler:
    def test_zero_temperature_picks_the_likeliest(self) -> None:
        sampler = Sampler(temperature=0, top_p=0.1, seed=1)
        assert sampler.pick(torch.tensor([0.0, 3.0, 2.0])) == 1

    def test_the_same_seed_picks_the_same_tokens(self) -> None:
        logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        first, second, other = (Sampler(temperature=1, top_p=1, seed=seed) for seed in (7, 7, 8))
        picked = [[sampler.pick(logits) for _ in range(20)] for sampler in (first, second, other)]
        assert picked[0] == picked[1] != picked[2]

    def test_without_a_seed_two_samplers_differ(self) -> None:
        logits = torch.zeros(1000)
        picked = [[Sampler(temperature=1, top_p=1).pick(logits) for _ in range(8)] for _ in range(2)]
        assert picked[0] != picked[1]

    @pytest.mark.parametrize("size", [4, 5000])
    def test_tokens_are_picked_as_often_as_their_probability_says(self, size: int) -> None:
        # 5,000 equally likely tokens have a nucleus beyond what is looked at first.
        probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125]) if size == 4 else torch.full((size,), 1 / size)
        sampler = Sampler(temperature=1, top_p=1, seed=3)
        counts = Counter(sampler.pick(probabilities.log()) for _ in range(2000))
        if size == 4:
            assert [counts[token] / 2000 for token in range(4)] == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.04)
        else:
            assert max(counts) > 4000
            assert len(counts) > 1000

    def test_top_p_leaves_the_tail_out(self) -> None:
        logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
        sampler = Sampler(temperature=1, top_p=0.75, seed=3)
        assert {sampler.pick(logits) for _ in range(300)} == {0, 1}

    def test_a_tiny_temperature_is_almost_greedy_and_never_fails(self) -> None:
        sampler = Sampler(temperature=1e-30, top_p=0.9, seed=3)
        assert sampler.pick(torch.tensor([1.0, 50.0, -torch.inf])) == 1

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("logits", [[1.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    def test_logits_that_are_not_finite_are_told(self, temperature: float, logits: list[float]) -> None:
        with pytest.raises(NotFinite):
            Sampler(temperature=temperature, top_p=0.9, seed=1).pick(torch.tensor(logits))


class TestTextStream:
    def test_characters_of_several_tokens_come_whole(self, tokenizer: PreTrainedTokenizerBase) -> None:
        text = "Hi 👩‍🚀, naïve 日本語 — 🇩🇪!"
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        stream = TextStream(tokenizer)
        pieces = [stream.push(token) for token in tokens]
        assert "".join(pieces) == text
        assert len(tokens) > len(text)
        assert not any("\ufffd" in piece for piece in pieces)

    def test_special_tokens_are_no_text(self, tokenizer: PreTrainedTokenizerBase) -> None:
        stream = TextStream(tokenizer)
        assert [stream.push(token) for token in tokenizer.all_special_ids] == [""] * len(tokenizer.all_special_ids)

    @hypothesis_settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, VOCABULARY - 1) | st.integers(20, 300), max_size=30))
    def test_the_pieces_add_up_to_the_whole_text(self, tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> None:
        stream = TextStream(tokenizer)
        streamed = "".join(stream.push(token) for token in tokens)
        whole = str(tokenizer.decode(tokens, skip_special_tokens=True))
        assert whole.startswith(streamed)
        # Nothing is held back but the token that ends within a character, with what stands before it in that token.
        assert whole == streamed or whole.endswith("\ufffd")


class TestConstraint:
    @pytest.mark.parametrize("room", [40, 50, 70, 120])
    @pytest.mark.parametrize("seed", range(8))
    def test_a_reply_is_whole_and_fits_whatever_is_sampled(
        self, grammars: Grammars, tokenizer: PreTrainedTokenizerBase, room: int, seed: int
    ) -> None:
        tokens = sampled(grammars.constraint(SCHEMA), tokenizer, room=room, seed=seed)
        assert len(tokens) <= room
        reply = json.loads(str(tokenizer.decode(tokens)))
        assert list(reply) == ["feedback", "strengths", "score", "level"]
        assert len(reply["feedback"]) <= 120
        assert 1 <= len(reply["strengths"]) <= 3
        assert isinstance(reply["score"], int)
        assert reply["level"] in {"excellent", "good"}

    def test_a_document_that_cannot_fit_is_cut_not_ended_early(
        self, grammars: Grammars, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        assert len(sampled(grammars.constraint(SCHEMA), tokenizer, room=10, seed=0)) == 10

    @pytest.mark.parametrize("schema", ["no json", '{"type": "unheard of"}'])
    def test_a_schema_that_cannot_be_compiled_is_told(self, grammars: Grammars, schema: str) -> None:
        with pytest.raises(ValueError, match="can't be compiled"):
            grammars.constraint(schema)


def sampled(constraint: Constraint, tokenizer: PreTrainedTokenizerBase, *, room: int, seed: int) -> list[int]:
    """Decodes with random logits in a model's place, inclined to end strings more or less by the seed."""
    generator = torch.Generator().manual_seed(seed)
    quote = tokenizer.convert_tokens_to_ids('"')
    inclination = random.Random(seed).choice([0.0, 12.0, 14.0])
    tokens: list[int] = []
    while len(tokens) < room and not constraint.complete:
        logits = torch.randn(VOCABULARY, generator=generator) * 3
        logits[quote] += inclination
        constraint.mask(logits)
        token = int(logits.argmax())
        ending = constraint.accept(token, room=room - len(tokens))
        if ending is not None:
            return [*tokens, *ending]
        tokens.append(token)
    return tokens
