"""Picking tokens, turning them into text, and constraining them to a schema, all without a model."""

import json
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from brain_server.torch_engine.compute.grammar import Constraint, Grammars
from brain_server.torch_engine.compute.sampler import Sampler, TextStream, pick

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


class TestPick:
    def test_zero_temperature_picks_the_likeliest(self) -> None:
        assert pick_alone([0.0, 3.0, 2.0], Sampler(temperature=0, top_p=0.1, seed=1)) == 1

    def test_the_same_seed_picks_the_same_tokens(self) -> None:
        logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)).tolist()
        samplers = [Sampler(temperature=1, top_p=1, seed=seed) for seed in (7, 7, 8)]
        first_tokens, same_seed_tokens, other_seed_tokens = (
            [pick_alone(logits, sampler) for _ in range(20)] for sampler in samplers
        )
        assert first_tokens == same_seed_tokens != other_seed_tokens

    def test_without_a_seed_two_samplers_differ(self) -> None:
        samplers = [Sampler(temperature=1, top_p=1) for _ in range(2)]
        first_tokens, second_tokens = ([pick_alone([0.0] * 1000, sampler) for _ in range(8)] for sampler in samplers)
        assert first_tokens != second_tokens

    @pytest.mark.parametrize("size", [4, 5000])
    def test_tokens_are_picked_as_often_as_their_probability_says(self, size: int) -> None:
        # 5,000 equally likely tokens have a nucleus beyond what is looked at first.
        probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125]) if size == 4 else torch.full((size,), 1 / size)
        logits_1V = probabilities.log()[None]
        samplers = [Sampler(temperature=1, top_p=1, seed=3)]
        counts = Counter(pick(logits_1V, samplers)[0] for _ in range(2000 if size == 4 else 500))
        if size == 4:
            assert [counts[token] / 2000 for token in range(4)] == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.04)
        else:
            assert max(token for token in counts if token is not None) > 4000
            assert len(counts) > 400

    def test_top_p_leaves_the_tail_out(self) -> None:
        logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
        sampler = Sampler(temperature=1, top_p=0.75, seed=3)
        assert {pick_alone(logits, sampler) for _ in range(300)} == {0, 1}

    def test_the_temperature_sharpens_and_flattens(self) -> None:
        logits = torch.tensor([0.6, 0.4]).log().tolist()

        def share_of_the_likelier(temperature: float) -> float:
            sampler = Sampler(temperature=temperature, top_p=1, seed=3)
            return [pick_alone(logits, sampler) for _ in range(1000)].count(0) / 1000

        # p^(1/T), normalised.
        assert share_of_the_likelier(0.25) == pytest.approx(0.6**4 / (0.6**4 + 0.4**4), abs=0.04)
        assert share_of_the_likelier(2.0) == pytest.approx(0.6**0.5 / (0.6**0.5 + 0.4**0.5), abs=0.05)

    def test_a_tiny_temperature_is_almost_greedy_and_never_fails(self) -> None:
        assert pick_alone([1.0, 50.0, -torch.inf], Sampler(temperature=1e-30, top_p=0.9, seed=3)) == 1

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("logits", [[1.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    def test_logits_that_are_not_finite_give_no_token(self, temperature: float, logits: list[float]) -> None:
        assert pick_alone(logits, Sampler(temperature=temperature, top_p=0.9, seed=1)) is None

    def test_a_broken_row_gives_no_token_and_leaves_the_others_alone(self) -> None:
        logits_BV = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [5.0, -torch.inf], [torch.inf, 0.0]])
        samplers = [Sampler(temperature=temperature, top_p=1, seed=1) for temperature in (0, 1, 1, 0)]
        assert pick(logits_BV, samplers) == [1, None, 0, None]

    @given(
        st.lists(
            st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.sampled_from([0.2, 0.9, 1.0])), min_size=1, max_size=6
        ),
        st.integers(0, 2**32),
    )
    def test_a_rows_token_does_not_depend_on_the_other_rows(
        self, parameters: list[tuple[float, float]], seed: int
    ) -> None:
        logits_BV = torch.randn(len(parameters), 3000, generator=torch.Generator().manual_seed(seed)) * 3
        if seed % 3 == 0:
            # A broken row disturbs no other.
            logits_BV[seed % len(parameters), 0] = torch.nan
        together, alone = (
            [
                Sampler(temperature=temperature, top_p=top_p, seed=row)
                for row, (temperature, top_p) in enumerate(parameters)
            ]
            for _ in range(2)
        )
        for _ in range(3):
            tokens = pick(logits_BV, together)
            assert tokens == [pick(logits_BV[row : row + 1], [sampler])[0] for row, sampler in enumerate(alone)]


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
        streamed_text = "".join(stream.push(token) for token in tokens)
        whole_text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        assert whole_text.startswith(streamed_text)
        # Only the last token may be missing, if it ends within a character.
        assert whole_text == streamed_text or whole_text.endswith("\ufffd")


class TestConstraint:
    @pytest.mark.parametrize("room", [40, 50, 70, 120])
    @pytest.mark.parametrize("seed", range(8))
    def test_a_reply_is_whole_and_fits_whatever_is_sample_reply(
        self, grammars: Grammars, tokenizer: PreTrainedTokenizerBase, room: int, seed: int
    ) -> None:
        tokens = sample_reply(grammars.constraint(SCHEMA), tokenizer, room=room, seed=seed)
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
        assert len(sample_reply(grammars.constraint(SCHEMA), tokenizer, room=10, seed=0)) == 10

    @pytest.mark.parametrize("schema", ["no json", '{"type": "unheard of"}'])
    def test_a_schema_that_cannot_be_compiled_is_an_error(self, grammars: Grammars, schema: str) -> None:
        with pytest.raises(ValueError, match="can't be compiled"):
            grammars.constraint(schema)


def pick_alone(logits: list[float], sampler: Sampler) -> int | None:
    """The next token of a row without other rows."""
    (token,) = pick(torch.tensor([logits]), [sampler])
    return token


def sample_reply(constraint: Constraint, tokenizer: PreTrainedTokenizerBase, *, room: int, seed: int) -> list[int]:
    """Decodes random logits instead of a model's; the seed also decides how likely strings are to end."""
    generator = torch.Generator().manual_seed(seed)
    quote = tokenizer.convert_tokens_to_ids('"')
    quote_bias = random.Random(seed).choice([0.0, 12.0, 14.0])
    tokens: list[int] = []
    while len(tokens) < room and not constraint.is_complete:
        logits = torch.randn(VOCABULARY, generator=generator) * 3
        logits[quote] += quote_bias
        constraint.mask(logits)
        token = int(logits.argmax())
        completion = constraint.accept(token, room=room - len(tokens))
        if completion is not None:
            return [*tokens, *completion]
        tokens.append(token)
    return tokens
